//! Jobs that end early.

use std::pin::Pin;
use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};

/// Whether somebody said that a job must end.
#[derive(Debug, Default)]
pub(super) struct Stopped(OnceLock<ErrorKind>);

impl Stopped {
    /// `stop`, remembered.
    pub(super) async fn remembering(&self, stop: impl Future<Output = Error>) -> Error {
        let reason = stop.await;
        self.0.set(reason.kind()).ok();
        reason
    }

    /// Whether a job that ended with this error begins anew, without the LUN that an audit found to differ.
    pub(super) fn lets_begin_anew(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::AuditFailed && self.0.get().is_none()
    }

    /// The error of a job whose image is dealt with: one that was stopped ends with that, though an audit found a difference as well.
    pub(super) fn or(&self, error: Error) -> Error {
        match self.0.get() {
            Some(&kind) if error.kind() == ErrorKind::AuditFailed => {
                let message = "the job was stopped, and nothing is kept of it";
                Error::new(kind, message).caused_by(error)
            }
            _ => error,
        }
    }
}

/// Does work, unless `stop` says before its end why it must not go on. Who calls it can tell then what became of the target.
///
/// # Errors
/// Those of the work, and what `stop` told.
pub async fn unless_stopped<T>(
    stop: Pin<&mut impl Future<Output = Error>>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        error = stop => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its image is gone by then, and whoever stopped it wants no other attempt.
    #[tokio::test]
    async fn a_job_that_was_stopped_ends_with_that() {
        let error = |kind| Error::new(kind, "an error");
        let stopped = Stopped::default();
        assert!(stopped.lets_begin_anew(&error(ErrorKind::AuditFailed)));
        assert!(!stopped.lets_begin_anew(&error(ErrorKind::HostLost)));
        assert_eq!(
            stopped.or(error(ErrorKind::AuditFailed)).kind(),
            ErrorKind::AuditFailed
        );
        let reason = std::future::ready(error(ErrorKind::Interrupted));
        assert_eq!(stopped.remembering(reason).await.kind(), ErrorKind::Interrupted);
        assert!(!stopped.lets_begin_anew(&error(ErrorKind::AuditFailed)));
        assert_eq!(
            stopped.or(error(ErrorKind::AuditFailed)).kind(),
            ErrorKind::Interrupted
        );
        assert_eq!(stopped.or(error(ErrorKind::Io)).kind(), ErrorKind::Io);
    }
}
