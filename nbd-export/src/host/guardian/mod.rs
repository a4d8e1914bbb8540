//! A process of its own for what must not stay behind: it freezes file systems and runs hooks, on the agent's order, and undoes all of it
//! when the order to do so comes, when the deadline passes, or when the agent is gone, however that went.
//!
//! It is this program, started anew (`nbd-export guard`), with one line of JSON for each order on its standard input and one for each
//! answer on its standard output. The end of its input is the end of the agent.
//!
//! Invariants:
//!
//! * a file system that it froze is thawed within the deadline, whatever the agent does;
//! * a hook that has not ended at its deadline is killed, with its process group;
//! * once a hook was ordered, the post-thaw hook runs exactly once;
//! * it writes nothing to a file system and waits for nobody while one is frozen.

mod client;
mod hook;
mod orders;
mod standstill;
mod watch;

pub(super) use client::Guardian;
pub(super) use orders::{Occasion, Outcome};
pub use watch::watch;
