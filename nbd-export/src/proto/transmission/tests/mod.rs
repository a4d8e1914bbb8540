//! Both halves of transmission back to back in memory, and each against peers that misbehave.

mod evil;
mod pair;
mod refusals;

use bytes::BytesMut;

use super::{ClientTransmission, Finished, ReplyEncoder, RequestDecoder};
use crate::proto::context::{ContextId, ContextName, SelectedContext};
use crate::proto::flags::TransmissionFlags;
use crate::proto::info::{BlockSizes, ExportInfo};
use crate::proto::session::{HeaderStyle, Negotiated};
use crate::proto::text::ExportName;

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

/// Everything, with a size of 1 TiB, and two contexts where there can be any.
fn session(style: HeaderStyle) -> Negotiated {
    let contexts: &[_] = match style {
        HeaderStyle::Simple => &[],
        _ => &[(5, "base:allocation"), (6, "x-volmap:generation")],
    };
    Negotiated {
        requested: ExportName::default(),
        export: ExportInfo {
            name: ExportName::default(),
            size: 1 << 40,
            flags: TransmissionFlags::from_wire(0x1fff & !(1 << 9 | 1 << 1)),
            block: BlockSizes::default(),
            description: String::new(),
        },
        style,
        contexts: contexts
            .iter()
            .map(|(id, name)| SelectedContext {
                id: ContextId(*id),
                name: ContextName::new(name).unwrap(),
            })
            .collect(),
    }
}

fn read_only(style: HeaderStyle) -> Negotiated {
    let mut session = session(style);
    session.export.flags |= TransmissionFlags::READ_ONLY;
    session
}
