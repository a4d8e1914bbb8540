//! Hosts under copy-before-write: one in this process ([`world`]), whose writers and readers are held at chosen points, and
//! one as a program ([`served`]).
//!
//! In the first, everything is the product's own, on real files: [`volmap::cow::Storage`], the host, its server on a Unix
//! socket, the NBD client and the jobs of the proxy. What is put between is a [`backing`] around origin and copy area,
//! and an [`crate::ambush`] around each LUN. What is expected comes from a [`log`] of every write, and from nothing
//! else.

pub mod backing;
pub mod client;
pub mod hold;
pub mod log;
pub mod served;
pub mod volume;
pub mod world;
pub mod writers;
