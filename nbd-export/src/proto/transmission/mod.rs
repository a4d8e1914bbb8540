//! The transmission phase: requests one way, replies the other.
//!
//! * [`rules`] is what a request must keep; the client holds its own requests against it, the server everybody's,
//!   before any backend sees them;
//! * [`server`] decodes requests, [`replies`] encodes their answers;
//! * [`client`] sends requests and matches replies by cookie; `read_assembly` and `status_assembly` put the chunks of
//!   one reply together.

pub mod client;
mod read_assembly;
pub mod replies;
pub mod rules;
pub mod server;
mod status_assembly;
#[cfg(test)]
mod tests;

pub use client::{ClientTransmission, Completion, Finished, ServerError};
pub use read_assembly::ReadReply;
pub use replies::{ReplyEncoder, StatusQuery};
pub use rules::RuleBroken;
pub use server::{Incoming, RequestDecoder};
pub use status_assembly::ContextStatus;
