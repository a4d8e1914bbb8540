//! A source against a whole server on a Unix socket, whose exports come and go.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nbd_export::config::Listener;
use nbd_export::export::{
    BlockStatus, Context, ContextIndex, ContextStatus, Export, ExportError, ExportInfo, Pieces, ReadShape,
};
use nbd_export::proto::{BlockSizes, ContextName, Descriptor};
use nbd_export::server::{Client, Exports, Found, Offer, Server};
use nbd_export::uri::NbdUri;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;
use volmap::range::ByteRange;

use super::source::NbdSource;
use crate::config::ImagePath;
use crate::error::ErrorKind;
use crate::job::backup::{BackupOptions, backup};
use crate::nbd::{Pool, PoolOptions};
use crate::pipeline::FrozenSource;
use crate::progress::Progress;
use crate::transport::direct::DirectOpener;

const SIZE: u64 = 1 << 20;

/// A frozen image of zeroes.
struct Image {
    contexts: Vec<Context>,
}

impl Image {
    fn export(frozen: u128, stores: usize) -> Arc<dyn Export> {
        let frozen = format!("x-volmap:frozen:{}", Uuid::from_u128(frozen));
        let stores = (0..stores).map(|depth| format!("x-volmap:store:{depth}:file:{}", "x".repeat(200)));
        let names = [frozen, "x-volmap:generation".into()].into_iter().chain(stores);
        Arc::new(Self {
            contexts: names.map(|name| Context { name, extended: true }).collect(),
        })
    }
}

impl Export for Image {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: SIZE,
            writable: false,
            fast_zero: false,
            block: BlockSizes::default(),
            description: String::new(),
        }
    }

    fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    fn read(&self, range: ByteRange, _: ReadShape, out: &mut Pieces) -> Result<(), ExportError> {
        out.zeroes(range);
        Ok(())
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        _: bool,
    ) -> Result<BlockStatus, ExportError> {
        let status = |&context| ContextStatus {
            context,
            descriptors: vec![Descriptor {
                length: range.len(),
                status: 0,
            }],
        };
        Ok(selected.iter().map(status).collect())
    }

    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
}

/// One name, behind which each connection finds the next image; the last one stays.
struct Changing {
    images: Vec<Arc<dyn Export>>,
    opened: AtomicUsize,
}

impl Exports for Changing {
    fn offers(&self, _: &Client) -> Vec<Offer> {
        Vec::new()
    }

    fn open(&self, name: &str, _: &Client) -> Option<Found> {
        let index = self.opened.fetch_add(1, Ordering::Relaxed);
        let image = self.images.get(index).or(self.images.last())?;
        Some(Found::of(name, image))
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Running {
    async fn start(socket: &Path, frozen: &[u128]) -> Self {
        Self::serve(
            socket,
            frozen.iter().map(|&uuid| Image::export(uuid, 0)).collect(),
        )
        .await
    }

    async fn serve(socket: &Path, images: Vec<Arc<dyn Export>>) -> Self {
        let exports = Changing {
            images,
            opened: AtomicUsize::new(0),
        };
        let listener = Listener::Unix {
            path: socket.to_owned(),
            plaintext: false,
        };
        let server = Server::bind(&[listener], Arc::new(exports)).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server.run(async {
            stopped.await.ok();
        }));
        Self { stop, server }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
    }
}

fn uri(socket: &Path) -> NbdUri {
    format!("nbd+unix:///e?socket={}", socket.display())
        .parse()
        .unwrap()
}

fn somewhere() -> ByteRange {
    ByteRange::new(0, 4096).unwrap()
}

/// The names are listed on one connection and selected on the next: an image that is frozen anew in between must not be taken
/// for one without a UUID.
#[tokio::test]
async fn a_name_that_changes_hands_while_connecting_is_listed_again() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let running = Running::start(&socket, &[1, 2]).await;
    let source = NbdSource::open(uri(&socket), Vec::new()).await.unwrap();
    assert_eq!(source.frozen(), Some(Uuid::from_u128(2)));
    drop(source);
    running.stop().await;
}

#[tokio::test]
async fn another_image_under_the_name_ends_the_job() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let first = Running::start(&socket, &[1]).await;
    let source = NbdSource::open(uri(&socket), Vec::new()).await.unwrap();
    first.stop().await;
    let second = Running::start(&socket, &[2]).await;
    for _ in 0..2 {
        let error = source.read(somewhere()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
    }
    second.stop().await;
}

/// Waiting for a host takes a while; every request that is in flight waiting for it anew would take hours.
#[tokio::test]
async fn a_host_that_does_not_come_back_is_waited_for_once() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let running = Running::start(&socket, &[1]).await;
    let source = NbdSource::open(uri(&socket), Vec::new()).await.unwrap();
    running.stop().await;
    tokio::time::pause();
    let begun = Instant::now();
    let reads = futures_util::future::join_all((0..16).map(|_| source.read(somewhere()))).await;
    for read in reads {
        assert_eq!(read.unwrap_err().kind(), ErrorKind::HostLost);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// Whoever waits for a connection may be busy elsewhere for longer than it may take to make one: a copy is, with a pipe that nobody
/// reads.
#[tokio::test]
async fn a_lost_connection_is_taken_up_again_while_nobody_looks() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let running = Running::start(&socket, &[1]).await;
    let options = PoolOptions {
        reconnect: Duration::from_secs(2),
        ..PoolOptions::default()
    };
    let generation = ContextName::new("x-volmap:generation").unwrap();
    let pool = Pool::open(uri(&socket), &[generation], options).await.unwrap();
    running.stop().await;
    let mut read = pin!(pool.read(0, 4096));
    let lost = tokio::time::timeout(Duration::from_millis(500), &mut read).await;
    assert!(lost.is_err(), "it waits for the server");
    let running = Running::start(&socket, &[1]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    read.await.unwrap();
    running.stop().await;
}

/// A host that names stores without end gets an error, not a panic, and no file is left.
#[tokio::test]
async fn countless_stores_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let running = Running::serve(&socket, vec![Image::export(1, 2000)]).await;
    let options = BackupOptions {
        uri: uri(&socket),
        output: ImagePath::File(directory.path().join("image")),
        luns: Vec::new(),
        require_direct: None,
        audit_percent: 0.0,
    };
    let error = backup(&options, &DirectOpener, &Progress::hidden())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostMisbehaved, "{error}");
    running.stop().await;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
