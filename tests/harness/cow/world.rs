//! A host with one origin, the LUNs that it lies on, and a proxy beside it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nbd_export::config::Listener;
use nbd_export::host::{Host, OriginSource};
use nbd_export::proto::ExportName;
use nbd_export::server::Server;
use nbd_export::uri::{NbdAddress, NbdUri};
use proxy_client::config::{ImagePath, LunArgument};
use proxy_client::error::Result;
use proxy_client::job::backup::{BackupOptions, backup};
use proxy_client::job::restore::{RestoreOptions, restore};
use proxy_client::nbd::NbdError;
use proxy_client::progress::Progress;
use proxy_client::report::BackupReport;
use proxy_client::transport::direct::LunOpener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use volmap::cow::{CopyAreaSpec, CopyOptions, OnFull, Origin, Storage};
use volmap::generation::GenerationClock;
use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::limits::{COPY_AREA_HEADER, COPY_UNIT};

use super::backing::{Hooked, Hooks, Side};
use super::client::Client;
use super::log::Oracle;
use super::volume::{assert_same, fill_device, make_volume};
use crate::digest;
use crate::disk::{LoopDisk, Mounted, Scratch, run, scratch};

/// The name of the origin.
pub const VOLUME: &str = "vol";

/// First byte and end of the partitions for origin and copy area: 16 MiB at an odd place, and room for as much old data. The
/// end of the second is that of the LUN.
const PARTITIONS: [(u64, u64); 2] = [(2049 * 512, 2049 * 512 + (16 << 20)), (20 << 20, 40 << 20)];

/// Where origin and copy area lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Both on one XFS on one LUN. Needs root.
    SharedLun,
    /// Each is a file that is declared to be a disk.
    TwoDisks,
    /// Each is a partition of one LUN. Needs root.
    Partitions,
}

/// Which LUNs the proxy is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Given {
    /// All that there are.
    All,
    /// Of two disks, that of the origin alone.
    OriginOnly,
}

enum Place {
    Lun(Mounted),
    Disks(Scratch),
    /// As [`Place::Disks`], in a directory that somebody else looks after.
    Given(PathBuf),
    Partitions(LoopDisk, Scratch),
}

impl Place {
    fn new(stage: Stage) -> Self {
        match stage {
            Stage::SharedLun => Self::Lun(Mounted::xfs(512 << 20)),
            Stage::TwoDisks => Self::Disks(scratch()),
            Stage::Partitions => {
                let directory = scratch();
                File::create_new(directory.path().join("lun"))
                    .and_then(|lun| lun.set_len(PARTITIONS[1].1))
                    .unwrap();
                let disk = LoopDisk::on(&directory.path().join("lun"), &["--direct-io=on", "--partscan"]);
                for (number, (start, end)) in (1..).zip(PARTITIONS) {
                    let numbers = [number, start / 512, (end - start) / 512].map(|n: u64| n.to_string());
                    let device = disk.device.to_str().unwrap();
                    run("addpart", &[device, &numbers[0], &numbers[1], &numbers[2]]);
                }
                Self::Partitions(disk, directory)
            }
        }
    }

    /// Origin and copy area. Both are made, the origin with its first content.
    fn make(&self, size: u64) -> ([PathBuf; 2], Vec<u8>) {
        let paths = self.storage();
        let [origin, copy_area] = &paths;
        let first = match self {
            Self::Partitions(..) => fill_device(origin, size),
            Self::Given(_) => fs::read(origin).unwrap(),
            Self::Lun(_) | Self::Disks(_) => make_volume(origin, size),
        };
        if let Self::Disks(_) = self {
            File::create_new(copy_area).unwrap();
        }
        (paths, first)
    }

    /// Where origin and copy area are.
    fn storage(&self) -> [PathBuf; 2] {
        let files = |directory: &Path| ["origin", "copies"].map(|name| directory.join(name));
        match self {
            Self::Lun(mounted) => files(&mounted.path),
            Self::Disks(directory) => files(directory.path()),
            Self::Given(directory) => files(directory),
            Self::Partitions(disk, _) => ["p1", "p2"].map(|part| {
                let mut path = disk.device.clone().into_os_string();
                path.push(part);
                path.into()
            }),
        }
    }

    /// A directory on no LUN of the proxy.
    fn outside(&self) -> &Path {
        match self {
            Self::Lun(mounted) => mounted.outside(),
            Self::Disks(directory) | Self::Partitions(_, directory) => directory.path(),
            Self::Given(directory) => directory,
        }
    }

    /// Path and identity of the LUNs, that of the origin first.
    fn luns(&self) -> Vec<(PathBuf, Identity)> {
        let lun = |path: PathBuf, name| (path, Identity::from_operator(name).unwrap());
        match self {
            Self::Lun(mounted) => vec![lun(mounted.disk.lun.clone(), "lun0")],
            Self::Partitions(disk, _) => vec![lun(disk.lun.clone(), "lun0")],
            Self::Disks(_) | Self::Given(_) => {
                let [origin, copy_area] = self.storage();
                vec![lun(origin, "lun0"), lun(copy_area, "lun1")]
            }
        }
    }
}

/// A frozen image, and what it has to hold.
pub struct Frozen {
    /// The name of its export.
    pub export: String,
    /// The volume at the instant of the freeze.
    pub content: Vec<u8>,
}

/// See the module. Dropped, it ends everything in it; a [`super::hold::Hold`] has to be dropped before.
pub struct World {
    /// The hook around origin and copy area.
    pub hooks: Hooks,
    /// The host.
    pub host: Arc<Host>,
    socket: PathBuf,
    /// What the volume holds, by the logs of [`World::writer`]s.
    pub oracle: Oracle,
    running: Option<(Runtime, oneshot::Sender<()>, JoinHandle<()>)>,
    handle: Handle,
    // Last: unmounted when nothing in it is open any more.
    place: Place,
}

/// No deadline passes because the machine stands still.
fn usual() -> CopyOptions {
    CopyOptions {
        window_max: Duration::from_secs(600),
        ready_max: Duration::from_secs(600),
        ..CopyOptions::default()
    }
}

impl World {
    /// Serves an origin of `size` bytes, whose copy area takes `copies` units. When it is full, frozen images end.
    pub fn open(stage: Stage, size: u64, copies: u64) -> Self {
        Self::open_with(stage, size, copies, OnFull::Break)
    }

    /// The same with a choice of what is done when the copy area is full.
    pub fn open_with(stage: Stage, size: u64, copies: u64, on_full: OnFull) -> Self {
        let options = CopyOptions { on_full, ..usual() };
        Self::serve(Place::new(stage), size, copies, options)
    }

    /// The same, where freezes get ready for so long at most, and hold writers for as long.
    pub fn open_hurried(stage: Stage, size: u64, copies: u64, within: Duration) -> Self {
        let options = CopyOptions {
            window_max: within,
            ready_max: within,
            ..usual()
        };
        Self::serve(Place::new(stage), size, copies, options)
    }

    /// Serves the files `origin` and `copies` of a directory, each as a disk, on the socket `nbd.sock` there.
    pub fn at(directory: &Path, size: u64, copies: u64) -> Self {
        Self::serve(Place::Given(directory.to_owned()), size, copies, usual())
    }

    fn serve(place: Place, size: u64, copies: u64, options: CopyOptions) -> Self {
        let ([origin, copy_area], first) = place.make(size);
        let layers = Arc::new(Layers::new(place.luns()).unwrap());
        let spec = CopyAreaSpec {
            path: copy_area,
            size: Some(COPY_AREA_HEADER + copies * COPY_UNIT),
            on_full: options.on_full,
        };
        let storage = Storage::open(&origin, &spec, layers).unwrap();
        let hooks = Hooks::default();
        let hooked = |inner, side| Box::new(Hooked::new(inner, side, hooks.clone()));
        let live = Origin::with_backings(
            hooked(storage.origin, Side::Origin),
            hooked(storage.copy_area, Side::CopyArea),
            storage.ground,
            Arc::new(GenerationClock::start().unwrap()),
            options,
        )
        .unwrap();
        let host = Arc::new(Host::new());
        let source = Arc::new(OriginSource::new(origin, live));
        host.add(&VOLUME.parse().unwrap(), source).unwrap();

        let socket = place.outside().join("nbd.sock");
        let runtime = Runtime::new().unwrap();
        let listener = Listener::Unix {
            path: socket.clone(),
            plaintext: false,
        };
        let server = runtime
            .block_on(Server::bind(&[listener], Arc::clone(&host) as _))
            .unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = runtime.spawn(server.run(async move {
            // Sent or dropped, both mean the end.
            let _ = stopped.await;
        }));
        Self {
            hooks,
            host,
            socket,
            oracle: Oracle::new(first),
            handle: runtime.handle().clone(),
            running: Some((runtime, stop, server)),
            place,
        }
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> NbdUri {
        NbdUri {
            address: NbdAddress::Unix(self.socket.clone()),
            export: ExportName::new(export).unwrap(),
            tls: None,
        }
    }

    /// A path for a file of the test.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.place.outside().join(name)
    }

    /// A client of the live volume, whose writes count for the oracle.
    pub fn writer(&self) -> Client {
        let client = Client::connect(&self.handle, &self.uri(VOLUME), &[]).unwrap();
        self.oracle.add(client.log());
        client
    }

    /// A client of an export.
    ///
    /// # Errors
    /// There is no such export.
    pub fn reader(&self, export: &str, contexts: &[&str]) -> std::result::Result<Client, NbdError> {
        Client::connect(&self.handle, &self.uri(export), contexts)
    }

    /// Freezes the volume while no request is in flight.
    pub fn freeze(&self, id: &str) -> Frozen {
        let content = self.oracle.content();
        let export = self.host.freeze(VOLUME, Some(id)).unwrap().remove(0).export;
        Frozen { export, content }
    }

    /// Ends a frozen image.
    pub fn thaw(&self, frozen: &Frozen) {
        self.host.thaw(&frozen.export).unwrap();
    }

    /// Backs an export up, to an image of that name.
    ///
    /// # Errors
    /// As the job.
    pub fn backup(
        &self,
        export: &str,
        given: Given,
        opener: &dyn LunOpener,
    ) -> Result<(BackupReport, PathBuf)> {
        let image = self.scratch(&format!("{export}.vbi.zst"));
        let luns = self.place.luns();
        let count = if given == Given::All { luns.len() } else { 1 };
        let luns = luns.into_iter().take(count).map(|(path, identity)| LunArgument {
            identity: Some(identity),
            path,
            allowed: Vec::new(),
        });
        let options = BackupOptions {
            luns: luns.collect(),
            ..BackupOptions::new(self.uri(export), ImagePath::File(image.clone()))
        };
        let progress = Progress::hidden();
        let done = backup(&options, opener, &progress);
        Ok((self.handle.block_on(done)?, image))
    }

    /// What is in an image, by our restore and by stock zstd, is the frozen content. The image is removed.
    pub fn assert_restores(&self, image: &Path, frozen: &Frozen) {
        let restored = image.with_extension("restored");
        let options = RestoreOptions::to_path(image, &restored);
        self.handle.block_on(restore(&options, &mut |_, _| {})).unwrap();
        assert_same(&fs::read(&restored).unwrap(), &frozen.content, "restored");
        let unpacked = digest::of_command(Command::new("zstd").arg("-dcq").arg(image));
        assert_eq!(unpacked, blake3::hash(&frozen.content), "zstd -dc");
        fs::remove_file(&restored).unwrap();
        fs::remove_file(image).unwrap();
    }

    /// Neither an image of that name nor a part of one is left.
    pub fn assert_no_image(&self, export: &str) {
        let left: Vec<_> = fs::read_dir(self.place.outside())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(&format!("{export}.vbi")))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.hooks.clear();
        if let Some((runtime, stop, server)) = self.running.take() {
            // The server may have ended already.
            stop.send(()).ok();
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(10), server).await.ok();
            });
            self.host.close();
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
        // The host holds origin and copy area open.
        self.host = Arc::new(Host::new());
    }
}
