//! What a server's handshake asks of its surroundings.

use crate::proto::constants::OptionReplyCode;
use crate::proto::context::ContextName;
use crate::proto::info::ExportInfo;
use crate::proto::option::ListedExport;
use crate::proto::session::HeaderStyle;
use crate::proto::text::ErrorText;

/// Why an export is not to be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No export of that name.
    #[error("no export has this name; LIST shows those there are")]
    Unknown,
    /// This client may not have it.
    #[error("the policy of this server forbids it")]
    Policy,
    /// The server serves as many clients as it can.
    #[error("this server, or your share of it, has as many connections as it takes: try again later")]
    Busy,
    /// The server, or the export, is going away.
    #[error("the server is shutting down")]
    Shutdown,
    /// It is made for whoever enters it (GO), and nothing is known of it before.
    #[error("it is made for the client that enters it with NBD_OPT_GO: nothing is known of it before")]
    OnEntry,
    /// It is not made now, and may be later.
    #[error("{}", .0.as_str())]
    NotNow(ErrorText),
    /// It could not be made.
    #[error("{}", .0.as_str())]
    Failed(ErrorText),
}

impl Refusal {
    /// The reply that says it.
    pub(super) fn reply(&self) -> OptionReplyCode {
        match self {
            Self::Unknown => OptionReplyCode::ERR_UNKNOWN,
            Self::Policy | Self::Busy | Self::OnEntry | Self::NotNow(_) => OptionReplyCode::ERR_POLICY,
            Self::Shutdown => OptionReplyCode::ERR_SHUTDOWN,
            Self::Failed(_) => OptionReplyCode::ERR_PLATFORM,
        }
    }

    /// The text that goes with it.
    pub(super) fn text(&self) -> ErrorText {
        ErrorText::new(self.to_string())
    }
}

/// What a client that enters an export gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The export.
    Ready(ExportInfo),
    /// It has to be made first.
    Awaited,
}

/// The exports that a server offers to one client. Nothing is opened, frozen or mapped for these questions: the
/// client may still go away (CVE-2019-14850).
pub trait Catalogue {
    /// The exports that this client may see.
    ///
    /// # Errors
    /// The list is not given.
    fn list(&self) -> Result<Vec<ListedExport>, Refusal>;

    /// The export of that name; the empty name means the default export. The flags are all that the export can:
    /// the handshake takes away those that the session did not negotiate.
    ///
    /// # Errors
    /// The export is not to be had.
    fn describe(&self, name: &str) -> Result<ExportInfo, Refusal>;

    /// The same for a client that enters the export with GO. This may be the beginning of an export that has to be made.
    ///
    /// # Errors
    /// The export is not to be had.
    fn enter(&self, name: &str) -> Result<Entry, Refusal> {
        self.describe(name).map(Entry::Ready)
    }

    /// Every context that a session of that style can select on the export; contexts of 64-bit status only for
    /// [`HeaderStyle::Extended`].
    ///
    /// # Errors
    /// The export is not to be had.
    fn contexts(&self, name: &str, style: HeaderStyle) -> Result<Vec<ContextName>, Refusal>;
}
