//! Whether a job that failed may be begun again: what its host said, however many sentences were put around it.

use std::error::Error as StdError;

use nbd_export::proto::ProtocolError;
use nbd_export::proto::constants::OptionReplyCode;

use crate::error::{Error, ErrorKind};
use crate::nbd::NbdError;

/// Whether the host may do later what it did not do now: it was lost, is shutting down, or has too much to do, which it says in the
/// words of a policy; or its copy area was filling too fast.
pub(super) fn may_pass(error: &Error) -> bool {
    match told(error) {
        Some(NbdError::Protocol(ProtocolError::Refused(refused))) => {
            [OptionReplyCode::ERR_POLICY, OptionReplyCode::ERR_SHUTDOWN].contains(&refused.reply)
        }
        Some(_) => error.kind() == ErrorKind::HostLost,
        // Another request of the job heard why.
        None => matches!(
            error.kind(),
            ErrorKind::HostLost | ErrorKind::HostRefused | ErrorKind::CopyAreaFilling
        ),
    }
}

/// Whether the host has no export of that name.
pub(super) fn is_unknown_export(error: &Error) -> bool {
    told(error).is_some_and(NbdError::is_unknown_export)
}

fn told(error: &Error) -> Option<&NbdError> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(told) = error.downcast_ref() {
            return Some(told);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use nbd_export::proto::constants::OptionCode;
    use nbd_export::proto::{ErrorText, OptionRefused};

    use super::*;

    fn refused(reply: OptionReplyCode) -> Error {
        let refused = OptionRefused {
            option: OptionCode::GO,
            reply,
            text: ErrorText::default(),
        };
        Error::from(NbdError::Protocol(ProtocolError::Refused(refused)))
    }

    #[test]
    fn a_busy_host_is_asked_again_and_one_without_the_export_is_not() {
        // As resume and backup put it.
        let around = |kind, error| Error::new(kind, "not finished").caused_by(error);
        for (reply, passes) in [
            (OptionReplyCode::ERR_POLICY, true),
            (OptionReplyCode::ERR_SHUTDOWN, true),
            (OptionReplyCode::ERR_UNKNOWN, false),
            (OptionReplyCode::ERR_UNSUP, false),
        ] {
            assert_eq!(may_pass(&refused(reply)), passes, "{reply}");
            let kept = around(ErrorKind::HostRefused, refused(reply));
            assert_eq!(may_pass(&around(ErrorKind::HostRefused, kept)), passes, "{reply}");
            let gone = reply == OptionReplyCode::ERR_UNKNOWN;
            assert_eq!(is_unknown_export(&refused(reply)), gone, "{reply}");
        }
        assert!(may_pass(&Error::from(NbdError::Closed)));
        assert!(may_pass(&Error::new(ErrorKind::HostLost, "lost")));
        assert!(may_pass(&Error::new(
            ErrorKind::HostRefused,
            "no other connection"
        )));
        assert!(!may_pass(&Error::new(ErrorKind::Io, "full")));
        assert!(!may_pass(&Error::from(NbdError::Replaced)));
        let ended = NbdError::Protocol(ProtocolError::ExportNameRefused);
        assert!(!may_pass(&Error::from(ended.clone())) && is_unknown_export(&Error::from(ended)));
    }
}
