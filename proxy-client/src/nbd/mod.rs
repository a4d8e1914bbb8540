//! The NBD client: tokio drives the client half of [`nbd_export::proto`].
//!
//! `dial` opens sockets and shakes hands; `connection` is the handle of one session, `driver` the task that owns its
//! socket, keeps many requests in flight and knows each by its cookie; `error` says whose fault a failure was; `pool` is several
//! connections to one export that are taken up again when they are lost, which `redial` does. A reply
//! reaches the caller whole and checked, or not at all; what ended a session is told to everybody who comes later.

mod buffers;
mod connection;
mod dial;
mod driver;
mod error;
mod limits;
mod on_request;
mod outbox;
mod pool;
mod redial;
#[cfg(test)]
mod tests;

pub(crate) use buffers::BufferPool;
pub use connection::Connection;
pub(crate) use dial::list_contexts_within;
pub use dial::{list_contexts, list_exports};
pub use error::NbdError;
pub use limits::Deadlines;
pub use on_request::{is_made_on_request, make};
pub use pool::{Pool, PoolOptions};
