//! Jobs that end early.

use std::pin::Pin;

use crate::error::{Error, Result};

/// Does work, unless `stop` says before its end why it must not go on. Who calls it can tell then what became of the target.
pub(super) async fn unless_stopped<T>(
    stop: Pin<&mut impl Future<Output = Error>>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        error = stop => Err(error),
    }
}
