//! NBD server for frozen images with their block maps, and the NBD codec of both peers.

pub mod export;
pub mod proto;
