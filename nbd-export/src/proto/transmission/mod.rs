//! The transmission phase: requests one way, replies the other.
//!
//! * [`rules`] is what a request must keep; the client holds its own requests against it, the server everybody's,
//!   before any backend sees them;
//! * [`server`] decodes requests, [`replies`] encodes their answers;
//! * [`client`] sends requests and matches replies by cookie, `assembly` puts the chunks of one reply together.

pub mod replies;
pub mod rules;
pub mod server;

pub use replies::{ReplyEncoder, StatusQuery};
pub use rules::RuleBroken;
pub use server::{Incoming, RequestDecoder};
