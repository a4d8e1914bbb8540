//! The NBD protocol, both peers side by side: fixed newstyle handshake, and transmission with simple, structured or
//! extended headers.
//!
//! This room knows no socket, file, clock or thread: bytes go in, bytes and decisions come out. Invariants:
//!
//! * nothing is allocated, waited for or believed because a peer announced it: every length is held against
//!   [`limits`] first;
//! * what can be wrong with a peer is one variant of [`error`], and text is never matched;
//! * a reply reaches the caller whole and checked, or not at all.
//!
//! The numbers are those of the NBD specification, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>
//! and its `EXTENDED_HEADERS` extension; sections are named where a rule is kept.

pub mod constants;
pub mod context;
pub mod errno;
pub mod error;
mod fields;
pub mod flags;
pub mod handshake;
pub mod info;
pub mod limits;
pub mod option;
pub mod reply;
pub mod request;
pub mod session;
pub mod text;
pub mod transmission;

pub use context::{ContextId, ContextName, SelectedContext};
pub use errno::Errno;
pub use error::{DecodeError, OptionRefused, PeerIncompatible, PeerMisbehaved, ProtocolError, StringError};
pub use flags::TransmissionFlags;
pub use info::{BlockSizes, ExportInfo};
pub use reply::Descriptor;
pub use request::{Command, Cookie, ReplyTo};
pub use session::{HeaderStyle, Negotiated};
pub use text::{ErrorText, ExportName};
