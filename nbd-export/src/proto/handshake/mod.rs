//! The handshake: fixed newstyle negotiation from the greeting to transmission.
//!
//! [`ServerHandshake`] answers out of a [`Catalogue`], which it asks synchronously and which opens nothing for a
//! client that has not got through; [`ClientHandshake`] walks towards a [`Goal`]. Both are fed with bytes and leave
//! what follows the handshake in their input.

mod catalogue;
mod client;
mod collected;
mod server;
#[cfg(test)]
mod tests;

pub use catalogue::{Catalogue, Entry, Refusal};
pub use client::{ClientHandshake, ClientProgress, Goal, Outcome};
pub use server::{Progress, ServerHandshake};
