//! A volume in pieces of one sector each, on a LUN with blocks of eight: a layout that a host may describe, though no file
//! system of this machine makes it. The server, the wire, the proxy and the device are the real ones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use nbd_export::config::Listener;
use nbd_export::export::{Export, FrozenExport};
use nbd_export::server::{Client, Exports, Found, Offer, Server};
use proxy_client::config::{ImagePath, LunArgument};
use proxy_client::job::backup::BackupOptions;
use tests::ambush::Ambush;
use tests::disk::{LoopDisk, scratch};
use tests::image::assert_holds;
use tests::needs_loop_devices;
use tests::site::{VOLUME, run_backup, text};
use tests::volume::noise;
use tokio::sync::oneshot;
use uuid::Uuid;
use volmap::frozen::{
    Attestation, Description, FrozenError, FrozenImage, Stability, Status, StatusExtent, Strength,
};
use volmap::generation::{Generation, GenerationClock};
use volmap::identity::Identity;
use volmap::map::Content;
use volmap::range::ByteRange;
use volmap::store::{Below, Place, Segment, Store, StoreGraph, StoreId, StoreKind};

const SECTOR: u64 = 512;
const SECTORS: u64 = 2049;
const LUN_SIZE: u64 = 4 << 20;

/// Where a sector of the volume lies: neighbours are far apart, and foreign bytes lie between them.
fn place(sector: u64) -> u64 {
    // An odd factor: every sector gets a slot of its own.
    let slots = LUN_SIZE / SECTOR;
    (sector * 4095 + 17) % slots * SECTOR
}

struct Scattered {
    description: Description,
    graph: Arc<StoreGraph>,
    top: StoreId,
    generation: Generation,
    bytes: Vec<u8>,
}

impl Scattered {
    fn new(bytes: Vec<u8>) -> Self {
        let mut graph = StoreGraph::new();
        let disk = graph.add(Store {
            kind: StoreKind::Disk,
            identity: Identity::from_operator("lun0").unwrap(),
            label: "lun0".to_owned(),
            size: LUN_SIZE,
            block_size: None,
            below: Below::Disk,
        });
        let segments = (0..SECTORS).map(|sector| Segment {
            range: ByteRange::new(sector * SECTOR, SECTOR).unwrap(),
            below: Place {
                store: disk,
                offset: place(sector),
            },
        });
        let top = graph.add(Store {
            kind: StoreKind::File,
            identity: Identity::from_operator("scattered").unwrap(),
            label: "scattered".to_owned(),
            size: SECTORS * SECTOR,
            block_size: None,
            below: Below::Segments(segments.collect()),
        });
        Self {
            description: Description {
                uuid: Uuid::new_v4(),
                method: "static",
                strength: Strength::CrashConsistent,
                stability: Stability::Pinned,
                attestation: Attestation::Unattested,
                frozen_at: SystemTime::now(),
            },
            graph: Arc::new(graph),
            top,
            generation: GenerationClock::start().unwrap().next(),
            bytes,
        }
    }
}

impl FrozenImage for Scattered {
    fn description(&self) -> &Description {
        &self.description
    }

    fn size(&self) -> u64 {
        SECTORS * SECTOR
    }

    fn graph(&self) -> Arc<StoreGraph> {
        Arc::clone(&self.graph)
    }

    fn status(&self, range: ByteRange, _limit: usize) -> Result<Status, FrozenError> {
        let extent = StatusExtent {
            range,
            content: Content::Data,
            generation: self.generation,
            place: Some(Place {
                store: self.top,
                offset: range.start(),
            }),
        };
        Ok(Status {
            graph: self.graph(),
            extents: vec![extent],
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        let offset = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.bytes[offset..][..buf.len()]);
        Ok(())
    }

    fn stands(&self) -> Result<(), FrozenError> {
        Ok(())
    }

    fn thaw(&self) {}
}

struct Sole(Arc<dyn Export>);

impl Exports for Sole {
    fn offers(&self, _: &Client) -> Vec<Offer> {
        Vec::new()
    }

    fn open(&self, name: &str, _: &Client) -> Option<Found> {
        (name == VOLUME).then(|| Found::of(name, &self.0))
    }
}

/// A server in a thread of its own; ended when dropped.
struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Serving {
    fn start(image: Scattered, socket: &Path) -> Self {
        let listener = Listener::Unix {
            path: socket.to_owned(),
            plaintext: false,
        };
        let exports = Arc::new(Sole(Arc::new(FrozenExport::new(Arc::new(image)))));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(Server::bind(&[listener], exports)).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(server.run(async move {
                stopped.await.ok();
            }));
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.take().unwrap().send(()).ok();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn sectors_are_cut_out_of_blocks_of_eight() {
    needs_loop_devices!("zstd");
    let directory = scratch();
    let lun = LoopDisk::new(directory.path(), "lun", LUN_SIZE, 4096);
    let bytes = noise(1, usize::try_from(SECTORS * SECTOR).unwrap());
    let on_lun = File::options().write(true).open(&lun.lun).unwrap();
    on_lun
        .write_all_at(&noise(2, usize::try_from(LUN_SIZE).unwrap()), 0)
        .unwrap();
    for (sector, piece) in (0..).zip(bytes.chunks(usize::try_from(SECTOR).unwrap())) {
        on_lun.write_all_at(piece, place(sector)).unwrap();
    }
    on_lun.sync_all().unwrap();
    let volume = directory.path().join("volume");
    std::fs::write(&volume, &bytes).unwrap();

    let socket = directory.path().join("nbd");
    let _serving = Serving::start(Scattered::new(bytes), &socket);
    let image = directory.path().join("image");
    let uri = format!("nbd+unix:///{VOLUME}?socket={}", text(&socket));
    let options = BackupOptions {
        luns: vec![LunArgument::parse(&format!("lun0={}", text(&lun.device))).unwrap()],
        require_direct: Some(100.0),
        ..BackupOptions::new(uri.parse().unwrap(), ImagePath::File(image.clone()))
    };
    let report = run_backup(&options, &Ambush::never()).unwrap();
    assert_eq!(report.bytes_direct, SECTORS * SECTOR, "{report:?}");
    assert_eq!(report.policy_missed, None);
    assert_holds(&image, &volume);
}
