//! The replies to one option, as a client collects them before the ACK.

use crate::proto::constants::{InfoCode, OptionCode, OptionReplyCode};
use crate::proto::context::{ContextId, ContextName, SelectedContext};
use crate::proto::error::{DecodeError, PeerMisbehaved, ProtocolError};
use crate::proto::fields::Fields;
use crate::proto::flags::TransmissionFlags;
use crate::proto::info::{BlockSizes, ExportInfo, Info};
use crate::proto::limits::{MAX_LISTED, MAX_LISTED_BYTES};
use crate::proto::option::ListedExport;
use crate::proto::text::ExportName;

/// What came before the ACK. If an error comes instead, all of it counts for nothing.
#[derive(Debug, Default)]
pub(super) struct Collected {
    count: usize,
    bytes: usize,
    export: Option<(u64, TransmissionFlags)>,
    name: Option<ExportName>,
    description: Option<String>,
    block: Option<BlockSizes>,
    pub(super) exports: Vec<ListedExport>,
    pub(super) contexts: Vec<SelectedContext>,
}

impl Collected {
    /// Takes one reply that is neither ACK nor error.
    pub(super) fn take(
        &mut self,
        option: OptionCode,
        reply: OptionReplyCode,
        data: &[u8],
    ) -> Result<(), ProtocolError> {
        self.count += 1;
        self.bytes += data.len();
        if self.count > MAX_LISTED || self.bytes > MAX_LISTED_BYTES {
            return Err(PeerMisbehaved::EndlessReplies(option).into());
        }
        match (option, reply) {
            (OptionCode::LIST, OptionReplyCode::SERVER) => self.exports.push(ListedExport::decode(data)?),
            (OptionCode::GO, OptionReplyCode::INFO) => self.take_info(data)?,
            (OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT, OptionReplyCode::META_CONTEXT) => {
                let mut fields = Fields::of(data);
                self.contexts.push(SelectedContext {
                    id: ContextId(fields.u32()?),
                    name: ContextName::from_wire(fields.rest()).map_err(DecodeError::from)?,
                });
            }
            _ => return Err(PeerMisbehaved::UnexpectedOptionReply { option, reply }.into()),
        }
        Ok(())
    }

    fn take_info(&mut self, data: &[u8]) -> Result<(), ProtocolError> {
        let twice = match Info::decode(data)? {
            Info::Export { size, flags } => self
                .export
                .replace((size, flags))
                .is_some()
                .then_some(InfoCode::EXPORT),
            Info::Name(name) => self.name.replace(name).is_some().then_some(InfoCode::NAME),
            Info::Description(text) => self
                .description
                .replace(text)
                .is_some()
                .then_some(InfoCode::DESCRIPTION),
            Info::BlockSize(sizes) => self
                .block
                .replace(sizes)
                .is_some()
                .then_some(InfoCode::BLOCK_SIZE),
            // "The client MUST ignore information replies it does not understand."
            Info::Unknown(_) => None,
        };
        twice.map_or(Ok(()), |code| Err(PeerMisbehaved::DuplicateInfo(code).into()))
    }

    /// The export that an acknowledged GO described.
    pub(super) fn export(self, requested: &ExportName) -> Result<ExportInfo, ProtocolError> {
        let (size, flags) = self.export.ok_or(PeerMisbehaved::NoExportInfo)?;
        Ok(ExportInfo {
            name: self.name.unwrap_or_else(|| requested.clone()),
            size,
            flags,
            block: self.block.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
        })
    }

    /// The contexts that an acknowledged SET_META_CONTEXT selected.
    pub(super) fn selected(self, asked: &[ContextName]) -> Result<Vec<SelectedContext>, ProtocolError> {
        for (n, context) in self.contexts.iter().enumerate() {
            if !asked.contains(&context.name) {
                return Err(PeerMisbehaved::UnaskedContext.into());
            }
            let same = |earlier: &SelectedContext| earlier.id == context.id || earlier.name == context.name;
            if self.contexts[..n].iter().any(same) {
                return Err(PeerMisbehaved::DuplicateContext(context.id).into());
            }
        }
        Ok(self.contexts)
    }
}
