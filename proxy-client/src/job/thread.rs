//! Work that waits for disks.

use crate::error::{Error, ErrorKind, Result};

/// What waits for disks does so on a thread of its own.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Io, "a thread of the job broke down").caused_by(error)),
    }
}
