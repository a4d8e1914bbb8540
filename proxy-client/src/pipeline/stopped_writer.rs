//! The writer of a job that has failed.

use tokio::task::JoinHandle;

use super::limits::WRITER_STOP;
use super::run::Finished;
use crate::error::Result;
use crate::output::Remover;

/// A writer that gets no more orders.
pub(super) struct StoppedWriter {
    pub(super) writer: JoinHandle<Result<Finished>>,
    /// What removes the image, where nobody may go on with it.
    pub(super) remover: Option<Remover>,
}

impl StoppedWriter {
    /// Removes the image where it has to go: first of all, for the writer may be in a sync that takes long, and whoever kills us in that
    /// time would find an image that can be resumed. Then waits until the writer has let go of the output, so that another attempt can
    /// take it up; once there is `no_time`, for [`WRITER_STOP`] only.
    pub(super) async fn end(self, no_time: impl Future<Output = ()>) {
        let Self { mut writer, remover } = self;
        if let Some(remover) = remover {
            let removed = tokio::task::spawn_blocking(move || remover.remove());
            if tokio::time::timeout(WRITER_STOP, removed).await.is_err() {
                tracing::warn!("the file system does not let go of the unfinished image");
            }
        }
        let late = async {
            no_time.await;
            tokio::time::sleep(WRITER_STOP).await;
        };
        tokio::select! {
            _ = &mut writer => {}
            () = late => tracing::warn!("the writer does not let go of the output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::path::{Path, PathBuf};
    use std::pin::pin;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::Notify;
    use volmap::generation::Generation;
    use volmap::range::ByteRange;

    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::output::{FileOutput, Output};
    use crate::pipeline::limits::BATCH_DATA;
    use crate::pipeline::world::writing;
    use crate::pipeline::{FetchPolicy, FrozenSource, Luns, run};
    use crate::plan::mapped::MappedExtent;
    use crate::progress::Progress;

    /// A file whose second sync takes until somebody says so. The first left a checkpoint.
    struct SlowSync {
        file: FileOutput,
        syncs: usize,
        is_syncing: Arc<Notify>,
        go_on: mpsc::Receiver<()>,
    }

    impl Output for SlowSync {
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            self.file.write(bytes)
        }

        fn is_resumable(&self) -> bool {
            self.file.is_resumable()
        }

        fn remover(&self) -> Result<Option<Remover>> {
            self.file.remover()
        }

        fn make_durable(&mut self) -> Result<()> {
            self.file.make_durable()?;
            self.syncs += 1;
            if self.syncs == 2 {
                self.is_syncing.notify_one();
                self.go_on.recv().ok();
            }
            Ok(())
        }

        fn commit(self: Box<Self>) -> Result<()> {
            unreachable!("the job fails")
        }
    }

    /// Batches, and one that fails while the second is made durable.
    struct Failing {
        kind: ErrorKind,
        /// The number of that one, from 0.
        failing: u64,
        is_syncing: Arc<Notify>,
    }

    impl FrozenSource for Failing {
        fn size(&self) -> u64 {
            (self.failing + 1) * BATCH_DATA
        }

        async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
            Ok(vec![MappedExtent {
                range: ByteRange::new(range.start(), BATCH_DATA).unwrap(),
                content: volmap::map::Content::Data,
                generation: Generation::NEVER_DIRECT,
                place: None,
            }])
        }

        async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
            self.map(range).await
        }

        async fn read(&self, range: ByteRange) -> Result<Bytes> {
            if range.start() >= self.failing * BATCH_DATA {
                self.is_syncing.notified().await;
                return Err(Error::new(self.kind, "the last batch"));
            }
            Ok(vec![1; usize::try_from(range.len()).unwrap()].into())
        }
    }

    /// A job that fails while its writer is in a sync, what lets the sync end, and where its image would be.
    async fn failing(
        directory: &Path,
        kind: ErrorKind,
        failing: u64,
    ) -> (JoinHandle<ErrorKind>, mpsc::Sender<()>, PathBuf) {
        let path = directory.join("image");
        let (to_sync, go_on) = mpsc::channel();
        let is_syncing = Arc::new(Notify::new());
        let source = Failing {
            kind,
            failing,
            is_syncing: Arc::clone(&is_syncing),
        };
        let output = SlowSync {
            file: FileOutput::create(&path).unwrap(),
            syncs: 0,
            is_syncing,
            go_on,
        };
        let writing = writing(source.size(), Box::new(output));
        let job = tokio::spawn(async move {
            let luns = Luns::new(Vec::new());
            let progress = Progress::hidden();
            let never = pin!(pending());
            let ended = run(&source, &luns, FetchPolicy::default(), writing, never, &progress).await;
            ended.err().unwrap().kind()
        });
        (job, to_sync, directory.join("image.partial"))
    }

    async fn until(what: impl Fn() -> bool) {
        tokio::time::timeout(Duration::from_secs(20), async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap();
    }

    /// Bytes of a wrong disk may be in it, and the sync may outlast us. The batch that shows it may be the next, or one of those behind it.
    #[tokio::test]
    async fn what_may_be_wrong_is_gone_while_its_writer_still_syncs() {
        for batch in [2, 4] {
            let dir = tempfile::tempdir().unwrap();
            let (job, to_sync, partial) = failing(dir.path(), ErrorKind::WrongLun, batch).await;
            until(|| partial.exists()).await;
            until(|| !partial.exists()).await;
            assert!(!job.is_finished());
            to_sync.send(()).unwrap();
            assert_eq!(job.await.unwrap(), ErrorKind::WrongLun);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    /// Another attempt of this process takes the image up: its lock must be free by then.
    #[tokio::test]
    async fn a_job_that_lost_its_host_ends_after_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let (job, to_sync, partial) = failing(dir.path(), ErrorKind::HostLost, 2).await;
        until(|| partial.exists()).await;
        tokio::time::sleep(WRITER_STOP + Duration::from_secs(1)).await;
        assert!(!job.is_finished(), "the writer still has the image");
        to_sync.send(()).unwrap();
        assert_eq!(job.await.unwrap(), ErrorKind::HostLost);
        std::fs::File::open(&partial).unwrap().try_lock().unwrap();
    }
}
