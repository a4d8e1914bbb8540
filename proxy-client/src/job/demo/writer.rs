//! The demo's writer: an ordinary NBD client of the live volume.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use nbd_export::uri::NbdUri;
use tokio::task::JoinHandle;
use volmap::range::ByteRange;

use super::SIZE;
use super::host::host_failed;
use crate::error::Result;
use crate::nbd::Connection;
use crate::pipeline::random_below;

/// What is written at once.
const WRITE: u32 = 64 << 10;

/// Overwrites the live volume in random places until it is stopped.
pub(super) struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

impl Writer {
    pub(super) async fn start(live: NbdUri) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let connection = Connection::connect(&live, Vec::new()).await?;
        let written = AtomicU64::new(0);
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let offset = random_below(SIZE / u64::from(WRITE)) * u64::from(WRITE);
                let random = random_below(u64::MAX).to_le_bytes();
                match random[0] {
                    0..=7 => {
                        connection
                            .trim(ByteRange::new(offset, WRITE.into()).expect("not empty"))
                            .await?
                    }
                    _ => {
                        connection
                            .write(offset, Bytes::from(random.repeat(WRITE as usize / 8)), false)
                            .await?
                    }
                }
                written.fetch_add(WRITE.into(), Ordering::Relaxed);
            }
            connection.disconnect().await;
            Ok(written.into_inner())
        });
        Ok(Self { stop, task })
    }

    /// Bytes that were overwritten.
    pub(super) async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.map_err(host_failed)?
    }
}
