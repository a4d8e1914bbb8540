//! NBD server for frozen images with their block maps, and the NBD codec of both peers.

pub mod cli;
pub mod command;
pub mod config;
pub mod error;
pub mod export;
#[doc(hidden)]
pub mod fuzzing;
pub mod generate;
pub mod host;
pub mod proto;
pub mod proxy;
pub mod server;
pub mod tls;
pub mod uri;
