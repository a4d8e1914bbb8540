//! What a handshake settled: the common ground of both peers during transmission.

use super::constants::{EXTENDED_REPLY_MAGIC, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, STRUCTURED_REPLY_MAGIC};
use super::context::{ContextId, SelectedContext};
use super::flags::TransmissionFlags;
use super::info::ExportInfo;
use super::text::ExportName;

/// How the messages of a session look.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum HeaderStyle {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured reply chunks.
    Structured,
    /// Extended requests, extended reply chunks.
    Extended,
}

impl HeaderStyle {
    /// Bytes of a request header.
    pub const fn request_header_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }

    /// Bytes of a chunk header; a session of simple replies has none, and 16 bytes of reply header instead.
    pub const fn chunk_header_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 20,
            Self::Extended => 32,
        }
    }

    /// What a request begins with.
    pub(super) const fn request_magic(self) -> u32 {
        match self {
            Self::Simple | Self::Structured => REQUEST_MAGIC,
            Self::Extended => EXTENDED_REQUEST_MAGIC,
        }
    }

    /// What a chunk begins with.
    pub(super) const fn chunk_magic(self) -> u32 {
        match self {
            Self::Simple | Self::Structured => STRUCTURED_REPLY_MAGIC,
            Self::Extended => EXTENDED_REPLY_MAGIC,
        }
    }
}

/// A session after its handshake, as both peers know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// The name that the client used.
    pub requested: ExportName,
    /// The export, with the flags of this session.
    pub export: ExportInfo,
    /// How messages look.
    pub style: HeaderStyle,
    /// The selected contexts, in the order of selection.
    pub contexts: Vec<SelectedContext>,
}

impl Negotiated {
    /// Whether the export has all of `flags`.
    pub fn offers(&self, flags: TransmissionFlags) -> bool {
        self.export.flags.contains(flags)
    }

    /// The selected context of that id.
    pub fn context(&self, id: ContextId) -> Option<&SelectedContext> {
        self.contexts.iter().find(|context| context.id == id)
    }

    /// The id of the selected context of that name.
    pub fn context_id(&self, name: &str) -> Option<ContextId> {
        self.contexts
            .iter()
            .find(|context| context.name.as_str() == name)
            .map(|context| context.id)
    }
}
