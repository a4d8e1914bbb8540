//! The proxy's daemon as its clients see it: where it is, what is said to it, and a client that says it (docs/daemon.md).

mod client;
mod model;
mod url;

pub use client::{ProxyClient, ProxyError};
pub use model::{
    CopyAreaFill, DaemonStatus, ErrorBody, JobFailure, JobLimits, JobList, JobProgress, JobReport,
    JobRequest, JobState, LunStatus,
};
pub use url::{ProxyUrl, UrlError};
