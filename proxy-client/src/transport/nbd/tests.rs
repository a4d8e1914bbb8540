//! A source against a whole server on a Unix socket, whose exports come and go.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::TryStreamExt;
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
use volmap::identity::Identity;
use volmap::range::ByteRange;

use super::source::NbdSource;
use crate::chain::write_longest_chain;
use crate::config::ImagePath;
use crate::error::ErrorKind;
use crate::job::backup::{BackupOptions, backup};
use crate::job::lineage::{ParentOptions, ParentPolicy};
use crate::nbd::{Pool, PoolOptions};
use crate::pipeline::{BATCHES, FetchPolicy, Fetched, FrozenSource, Luns, fetch_batches};
use crate::progress::Progress;
use crate::transport::direct::{DirectOpener, Lun, LunReader};

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

    fn contexts(&self) -> Vec<Context> {
        self.contexts.clone()
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

async fn open(socket: &Path) -> crate::error::Result<NbdSource> {
    NbdSource::open(uri(socket), Vec::new(), PoolOptions::default()).await
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
    let source = open(&socket).await.unwrap();
    assert_eq!(source.frozen(), Some(Uuid::from_u128(2)));
    drop(source);
    running.stop().await;
}

#[tokio::test]
async fn another_image_under_the_name_ends_the_job() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let first = Running::start(&socket, &[1]).await;
    let source = open(&socket).await.unwrap();
    first.stop().await;
    let second = Running::start(&socket, &[2]).await;
    for _ in 0..2 {
        let error = source.read(somewhere()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
    }
    second.stop().await;
}

/// Speaks NBD far enough to refuse every export with `reply`. Its thread ends with the test's process.
fn refusing(socket: &Path, reply: u32) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            client.write_all(b"NBDMAGICIHAVEOPT\0\x03").ok();
            client.read_exact(&mut [0; 4]).ok();
            let mut head = [0; 16];
            while client.read_exact(&mut head).is_ok() {
                let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
                let length = u32::from_be_bytes(head[12..].try_into().unwrap());
                client.read_exact(&mut vec![0; length as usize]).ok();
                // INFO, GO and the two of contexts are about an export; the others are not supported.
                let reply = if matches!(option, 6 | 7 | 9 | 10) {
                    reply
                } else {
                    0x8000_0001
                };
                let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
                let answer = [&magic[..], &head[8..12], &reply.to_be_bytes(), &[0; 4]].concat();
                // Who has heard enough hangs up.
                client.write_all(&answer).ok();
            }
        }
    });
}

/// An image that could be resumed is thrown away when its frozen image is gone: a host that is busy or goes down does not say that.
#[tokio::test]
async fn only_a_name_that_the_host_does_not_know_is_a_frozen_image_that_is_gone() {
    for (reply, kind) in [
        (0x8000_0002, ErrorKind::HostRefused),
        (0x8000_0007, ErrorKind::HostRefused),
        (0x8000_0006, ErrorKind::FrozenImageGone),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        refusing(&socket, reply);
        let error = NbdSource::open_again(uri(&socket), Vec::new(), PoolOptions::default())
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

/// Many reads at once open more connections; one that finds another image is not read by, and there will be none after it.
#[tokio::test]
async fn every_connection_has_to_find_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let running = Running::start(&socket, &[1, 1, 2]).await;
    let source = open(&socket).await.unwrap();
    let reads = futures_util::future::join_all((0..16).map(|_| source.read(somewhere()))).await;
    assert!(reads.iter().all(|read| read.is_ok()));
    running.stop().await;
    let running = Running::start(&socket, &[1]).await;
    let error = source.read(somewhere()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
    running.stop().await;
}

/// Waiting for a host takes a while; every request that is in flight waiting for it anew would take hours.
#[tokio::test]
async fn a_host_that_does_not_come_back_is_waited_for_once() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let running = Running::start(&socket, &[1]).await;
    let source = open(&socket).await.unwrap();
    running.stop().await;
    tokio::time::pause();
    let begun = Instant::now();
    let reads = futures_util::future::join_all((0..16).map(|_| source.read(somewhere()))).await;
    for read in reads {
        assert_eq!(read.unwrap_err().kind(), ErrorKind::HostLost);
    }
    assert!(begun.elapsed() < Duration::from_secs(70), "{:?}", begun.elapsed());
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

/// A backup is held to it, and not only whoever looks for the chain.
#[tokio::test]
async fn a_chain_that_is_as_long_as_it_may_be_is_not_continued() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let longest = write_longest_chain(directory.path());
    let changed = |number: usize| format!("x-volmap:changed:{}", Uuid::from_u128(number as u128));
    let names = [
        format!("x-volmap:frozen:{}", Uuid::from_u128(1000)),
        "x-volmap:generation".into(),
        changed(longest - 1),
        changed(longest),
    ];
    let context = |name| Context { name, extended: true };
    let image = Image {
        contexts: names.into_iter().map(context).collect(),
    };
    let running = Running::serve(&socket, vec![Arc::new(image)]).await;
    for (number, kind) in [(longest - 1, None), (longest, Some(ErrorKind::LineageBroken))] {
        let output = ImagePath::File(directory.path().join(format!("over-{number}")));
        let options = BackupOptions {
            parent: Some(ParentOptions {
                image: directory.path().join(format!("{number}.vbi")),
                policy: ParentPolicy::Refuse,
                bitmap: None,
            }),
            ..BackupOptions::new(uri(&socket), output)
        };
        let done = backup(&options, &DirectOpener, &Progress::hidden()).await;
        assert_eq!(done.err().map(|error| error.kind()), kind, "{number}");
    }
    running.stop().await;
}

/// A host that names stores without end gets an error, not a panic, and no file is left.
#[tokio::test]
async fn countless_stores_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let running = Running::serve(&socket, vec![Image::export(1, 2000)]).await;
    let output = ImagePath::File(directory.path().join("image"));
    let options = BackupOptions::new(uri(&socket), output);
    let error = backup(&options, &DirectOpener, &Progress::hidden())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostMisbehaved, "{error}");
    running.stop().await;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A volume on a disk, as it is told after one start of its host.
struct Placed {
    contexts: Vec<Context>,
    incarnation: u64,
    /// Where it begins on the disk.
    at: u64,
}

const ON_DISK: &str = "x-volmap:disk:id:lun0";

impl Placed {
    fn export(names: [&str; 3], incarnation: u64, at: u64) -> Arc<dyn Export> {
        let context = |name: &str| Context {
            name: name.into(),
            extended: true,
        };
        Arc::new(Self {
            contexts: names.map(context).to_vec(),
            incarnation,
            at,
        })
    }

    fn content() -> Vec<u8> {
        let of_sector = |at: u64| u8::try_from(at / 512 % 251).unwrap() + 1;
        (0..SIZE).map(of_sector).collect()
    }
}

impl Export for Placed {
    fn info(&self) -> ExportInfo {
        Image { contexts: Vec::new() }.info()
    }

    fn contexts(&self) -> Vec<Context> {
        self.contexts.clone()
    }

    fn read(&self, range: ByteRange, _: ReadShape, out: &mut Pieces) -> Result<(), ExportError> {
        let bounds = [range.start(), range.end()].map(|at| usize::try_from(at).unwrap());
        let bytes = &Self::content()[bounds[0]..bounds[1]];
        out.data(range.start(), bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        _: bool,
    ) -> Result<BlockStatus, ExportError> {
        let status = |&context: &ContextIndex| ContextStatus {
            context,
            descriptors: vec![Descriptor {
                length: range.len(),
                status: match self.contexts[context.0].name.as_str() {
                    ON_DISK => 1 << 63 | (self.at + range.start()),
                    "x-volmap:generation" => self.incarnation << 24 | 1,
                    _ => 0,
                },
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

/// A disk whose first long read finds that the host was started anew, and what was frozen lies elsewhere by now.
struct Shaken {
    bytes: Mutex<Vec<u8>>,
    restart: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl LunReader for Shaken {
    fn size(&self) -> u64 {
        2 * SIZE
    }

    fn block_size(&self) -> u64 {
        512
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let mut bytes = self.bytes.lock().unwrap();
        if buf.len() > 64 << 10
            && let Some(restart) = self.restart.lock().unwrap().take()
        {
            let (first, second) = bytes.split_at_mut(usize::try_from(SIZE).unwrap());
            second.copy_from_slice(first);
            first.fill(0xee);
            restart();
        }
        let offset = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&bytes[offset..][..buf.len()]);
        Ok(buf.len())
    }
}

/// Its generations are of a new incarnation, so that nothing that was read by an old one is confirmed, though the counter below is the
/// same, and the contexts have other numbers.
#[tokio::test]
async fn a_host_that_was_started_anew_with_its_frozen_image_has_its_map_asked_for_anew() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let frozen = format!("x-volmap:frozen:{}", Uuid::from_u128(1));
    let before = Placed::export([&frozen, "x-volmap:generation", ON_DISK], 7, 0);
    let after = Placed::export([ON_DISK, "x-volmap:generation", &frozen], 9, SIZE);
    let first = Running::serve(&socket, vec![before]).await;
    let second = Arc::new(Mutex::new(None));

    let (kept, at, here) = (
        Arc::clone(&second),
        socket.clone(),
        tokio::runtime::Handle::current(),
    );
    let restart = move || {
        let restarted = here.block_on(async {
            first.stop().await;
            Running::serve(&at, vec![after]).await
        });
        *kept.lock().unwrap() = Some(restarted);
    };
    let mut bytes = Placed::content();
    bytes.resize(bytes.len() * 2, 0xdd);
    let disk = Shaken {
        bytes: Mutex::new(bytes),
        restart: Mutex::new(Some(Box::new(restart))),
    };
    let lun0 = Identity::from_operator("lun0").unwrap();
    let luns = Luns::new(vec![Lun::new(lun0.clone(), "lun0".into(), Box::new(disk))]);
    let source = NbdSource::open(uri(&socket), vec![lun0], PoolOptions::default())
        .await
        .unwrap();
    let policy = FetchPolicy::default();
    let fetched: Vec<Fetched> = fetch_batches(&source, &luns, policy, 0, None, BATCHES, |_, batch| {
        std::future::ready(Ok(batch))
    })
    .try_collect()
    .await
    .unwrap();
    let [batch] = &fetched[..] else {
        panic!("it is one batch");
    };
    let stretches = batch.stretches.iter();
    let read: Vec<u8> = stretches
        .flat_map(|stretch| stretch.bytes.as_deref().unwrap().to_vec())
        .collect();
    assert!(read == Placed::content());
    let tally = &batch.tally;
    assert_eq!(
        (tally.bytes_direct, tally.bytes_moved, tally.bytes_remapped_direct),
        (SIZE, SIZE, SIZE)
    );
    assert_eq!(source.reconnections(), 1);
    drop(source);
    let second = second.lock().unwrap().take().unwrap();
    second.stop().await;
}
