//! What the server under test offers, and the session that a client has there.

use super::script::{SIZE, selected};
use crate::proto::handshake::{Catalogue, Refusal};
use crate::proto::option::ListedExport;
use crate::proto::{
    BlockSizes, ContextName, ExportInfo, ExportName, HeaderStyle, Negotiated, TransmissionFlags,
};

/// Every flag that we know, but RESIZE.
const ALL_FLAGS: TransmissionFlags = TransmissionFlags::from_wire(0x1fff & !(1 << 9));

/// Names that a script can ask for. The last is as long as a name can be.
pub(super) fn names() -> [String; 7] {
    [
        "",
        "disk",
        "read-only",
        "secret",
        "gone",
        "nothing",
        &"n".repeat(4096),
    ]
    .map(str::to_owned)
}

/// Exports of all kinds.
pub(super) struct Shelf;

impl Catalogue for Shelf {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        Ok(["disk", "read-only"]
            .map(|name| ListedExport {
                name: ExportName::new(name).expect("a name"),
                description: format!("the {name}"),
            })
            .into())
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, Refusal> {
        match name {
            "" | "disk" => Ok(export(ALL_FLAGS)),
            "read-only" => Ok(export(read_only())),
            "secret" => Err(Refusal::Policy),
            "gone" => Err(Refusal::Shutdown),
            _ => Err(Refusal::Unknown),
        }
    }

    fn contexts(&self, name: &str, style: HeaderStyle) -> Result<Vec<ContextName>, Refusal> {
        self.describe(name)?;
        let names: &[_] = match style {
            HeaderStyle::Extended => &["base:allocation", "x-volmap:generation", "x-volmap:disk:id:a"],
            HeaderStyle::Simple | HeaderStyle::Structured => &["base:allocation"],
        };
        Ok(names
            .iter()
            .map(|name| ContextName::new(name).expect("a name"))
            .collect())
    }
}

/// What a client may be told at the moment.
pub(super) enum Veil {
    /// Nothing: whoever asks breaks a promise.
    Drawn,
    /// What is on the shelf.
    Lifted(Shelf),
}

impl Veil {
    fn shelf(&self) -> &Shelf {
        match self {
            Self::Drawn => panic!("an export is asked for while nothing of it may be told"),
            Self::Lifted(shelf) => shelf,
        }
    }
}

impl Catalogue for Veil {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        self.shelf().list()
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, Refusal> {
        self.shelf().describe(name)
    }

    fn contexts(&self, name: &str, style: HeaderStyle) -> Result<Vec<ContextName>, Refusal> {
        self.shelf().contexts(name, style)
    }
}

fn read_only() -> TransmissionFlags {
    ALL_FLAGS.without(
        TransmissionFlags::SEND_FUA | TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES,
    ) | TransmissionFlags::READ_ONLY
}

fn export(flags: TransmissionFlags) -> ExportInfo {
    ExportInfo {
        name: ExportName::new("disk").expect("a name"),
        size: SIZE,
        flags,
        block: BlockSizes::default(),
        description: "a disk".to_owned(),
    }
}

/// A session with everything that its style can have.
pub(super) fn session(style: HeaderStyle, writable: bool) -> Negotiated {
    let flags = if writable {
        ALL_FLAGS.without(TransmissionFlags::READ_ONLY)
    } else {
        read_only()
    };
    let flags = match style {
        HeaderStyle::Simple => {
            flags.without(TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD)
        }
        HeaderStyle::Structured => flags.without(TransmissionFlags::BLOCK_STATUS_PAYLOAD),
        HeaderStyle::Extended => flags,
    };
    Negotiated {
        requested: ExportName::default(),
        export: export(flags),
        style,
        contexts: selected(style),
    }
}
