//! NBD URIs, as the NBD project specifies them (doc/uri.md): `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and
//! both as `nbds` for TLS. What is not understood is an error that names it, never ignored: a parameter that was misspelt would
//! otherwise read another volume, or read it in the clear.

mod error;
mod model;
mod parse;
#[cfg(test)]
mod tests;

pub use error::UriError;
pub use model::{NbdAddress, NbdUri, TlsParameters};

pub use crate::proto::constants::DEFAULT_PORT;
