//! The NBD client: tokio drives the client half of [`nbd_export::proto`].
//!
//! `dial` opens sockets and shakes hands; `connection` keeps many requests in flight on one session, each known by its
//! cookie; `error` says whose fault a failure was. A reply reaches the caller whole and checked, or not at all.

mod connection;
mod dial;
mod error;
mod limits;

pub use connection::Connection;
pub use dial::{list_contexts, list_exports};
pub use error::NbdError;
