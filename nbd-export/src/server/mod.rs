//! Sockets and sessions: from a listener to an [`crate::export::Export`], with `proto` in between.
//!
//! Invariants:
//!
//! * whatever a client does costs that client its connection at most, and nobody else anything but time;
//! * memory, threads and time that a client can hold are bounded in [`limits`];
//! * nothing behind an export is asked before the client has gone into transmission;
//! * a reply is written whole, by the one writer of its connection, in the order in which replies are ready.

mod address;
mod admission;
mod exports;
mod handshake;
pub mod limits;
mod listener;
mod replies;
mod run;
mod session;
#[cfg(test)]
mod tests;
mod unix_socket;

pub use address::Addresses;
pub use exports::{Audience, Exports, Offer};
pub use run::{Server, runtime};
pub use unix_socket::{BindError, UnixSocket};
