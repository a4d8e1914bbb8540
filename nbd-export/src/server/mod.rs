//! Sockets and sessions: from a listener to an [`crate::export::Export`], with `proto` in between.
//!
//! Invariants:
//!
//! * whatever a client does costs that client its connection at most, and nobody else anything but time;
//! * memory, threads and time that a client can hold are bounded in [`limits`];
//! * nothing behind an export is asked before the client has gone into transmission;
//! * a connection has one task, in transmission on a thread of its own, which alone reads from its stream and writes to it: replies are
//!   written whole, in the order in which they are ready.

mod access;
mod address;
mod admission;
mod budget;
mod client_view;
mod exports;
mod farewell;
mod handshake;
pub mod limits;
mod listener;
mod outgoing;
mod readiness;
mod replies;
mod run;
mod session;
mod stream;
#[cfg(test)]
mod tests;
mod transmit;
mod unix_socket;
mod wire;

pub use access::{AllowLists, Allowed};
pub use address::Addresses;
pub use exports::{Audience, Client, Exports, Found, Offer};
pub use readiness::Readiness;
pub use run::{Server, runtime};
pub use unix_socket::{BindError, UnixSocket};
