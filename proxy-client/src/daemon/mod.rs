//! The daemon: takes jobs from hosts and operators, runs them, and files the images (docs/daemon.md).
//!
//! Invariants:
//!
//! * a job that was accepted is on the disk, and outlives the daemon in whatever way that ends: `queue`;
//! * no client and no host names a path or an address: both come from the configuration, names become parts of file names only after
//!   they were validated: `config`, `repository`;
//! * what has its own name in the repository is a whole image; what is under way ends in `.partial`: `repository`;
//! * whatever a client sends costs it its connection at most: `api`, `connection`;
//! * of a host's disks only those LUNs, and of these only those ranges, are read that the configuration allows it: `allowed`.

mod allowed;
mod api;
mod clock;
mod config;
mod connection;
mod limits;
mod live;
mod manifest;
mod metrics;
mod order;
mod passing;
mod queue;
mod repository;
mod run;
mod scheduler;
mod set;
mod worker;

pub use run::run;
