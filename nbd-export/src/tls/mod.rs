//! TLS with X.509 certificates on both sides (docs/tls.md): rustls, with ring for its arithmetic.
//!
//! * A directory holds what a peer needs, under the names that GnuTLS tools, qemu and nbdkit use: `directory`.
//! * A server demands a certificate of every client, and knows the client by the names in it: `server`, `names`.
//! * A client believes a server whose certificate is of its authority and has the name that it was called by: `client`.
//! * Sessions are never resumed: each connection proves both sides anew, so that a certificate that has expired, or is on a
//!   revocation list that was read, opens no new one. A session that has begun goes on.
//! * A revocation list that would not be heeded is refused: `revocation`.

mod client;
mod directory;
mod error;
mod names;
mod revocation;
mod server;
#[cfg(test)]
mod tests;

pub use client::ClientTls;
pub use error::{TlsError, is_of_tls};
pub use server::ServerTls;
