//! `demo`: the whole story on one machine, without root and without set-up.
//!
//! Host and proxy are the real ones; only the network between them is a Unix socket, and the shared disks are files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use clap::Parser;
use indicatif::HumanBytes;
use nbd_export::cli::{Cli as HostCli, Verb as HostVerb};
use nbd_export::config::ServeConfig;
use nbd_export::host::Host;
use nbd_export::server::Server;
use nbd_export::uri::{NbdAddress, NbdUri};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use volmap::range::ByteRange;

use super::backup::{BackupOptions, backup};
use super::restore::{RestoreOptions, restore};
use super::verify::verify;
use crate::config::{ImagePath, LunArgument};
use crate::error::{Error, ErrorKind, Result};
use crate::interrupt::Interrupt;
use crate::nbd::Connection;
use crate::pipeline::random_below;
use crate::progress::Progress;
use crate::report::BackupReport;
use crate::transport::direct::DirectOpener;

/// Size of the demo's volume: enough for the writers to meet the proxy, and done in seconds.
const SIZE: u64 = 256 << 20;
/// The last part of the volume was never written.
const HOLE: u64 = 64 << 20;
/// What the demo's writer writes at once.
const WRITE: u32 = 64 << 10;

/// Plays the story, and proves its end.
///
/// # Errors
/// The restore differs from the frozen image ([`ErrorKind::ImageBad`]), or a part of the story failed.
pub async fn demo(keep: Option<&Path>) -> Result<()> {
    let place = Place::new(keep)?;
    let say = |line: String| {
        writeln!(io::stdout().lock(), "{line}").map_err(|e| Error::io("telling", Path::new("stdout"), e))
    };
    let path = |name: &str| place.path().join(name);

    let frozen = make_disks(&path("lun.img"), &path("copy.img"))?;
    say(format!(
        "1. A shared disk, {}: a volume of {}.",
        path("lun.img").display(),
        HumanBytes(SIZE)
    ))?;

    let host = DemoHost::start(&place).await?;
    say(format!(
        "2. The host serves the volume under copy-before-write: {}",
        host.uri("vol")
    ))?;
    let export = host.freeze().await?;
    say(format!(
        "3. It is frozen, and the frozen image is published with its map: {}",
        host.uri(&export)
    ))?;
    let writer = Writer::start(host.uri("vol")).await?;
    say("4. A writer overwrites the live volume, over NBD, all the time.".into())?;

    let image = path("volume.vbi.zst");
    let options = BackupOptions {
        uri: host.uri(&export),
        output: ImagePath::File(image.clone()),
        luns: vec![
            LunArgument::parse(&format!("demo-lun={}", path("lun.img").display()))?,
            LunArgument::parse(&format!("demo-copy={}", path("copy.img").display()))?,
        ],
        require_direct: None,
        audit_percent: 1.0,
    };
    let report = backup(&options, &DirectOpener, &Progress::on_terminal()).await?;
    let written = writer.stop().await?;
    say(format!(
        "5. The proxy backed the frozen image up, while {} were overwritten:",
        HumanBytes(written)
    ))?;
    say(told(&report))?;
    host.stop().await?;

    let restored = path("restored.img");
    let interrupt = Interrupt::default();
    verify(&image, &interrupt, &mut |_, _| {})?;
    restore(
        &RestoreOptions {
            image: image.clone(),
            output: restored.clone(),
            force: false,
        },
        &interrupt,
        &mut |_, _| {},
    )?;
    say(format!(
        "6. The image was verified and restored: {}",
        restored.display()
    ))?;
    prove(&frozen, &restored, &path("lun.img"), &say)?;
    if let Some(directory) = keep {
        say(format!(
            "Everything is kept in {}; try: zstd -dc {} | cmp - {}",
            directory.display(),
            image.display(),
            restored.display()
        ))?;
    }
    Ok(())
}

/// The numbers of the backup.
fn told(report: &BackupReport) -> String {
    let row = |what: &str, bytes: u64, why: &str| {
        format!("     {what:<11}{:>12}  {why}", HumanBytes(bytes).to_string())
    };
    let mut rows = vec![
        row(
            "direct",
            report.bytes_direct,
            "read from the shared disks, confirmed by the host afterwards",
        ),
        row(
            "moved",
            report.bytes_moved,
            "overwritten under the proxy's hands, and read again",
        ),
        row(
            "  of it",
            report.bytes_remapped_direct,
            "directly from its new place, the copy area",
        ),
        row("nbd", report.bytes_nbd, "through the host"),
        row("zero", report.bytes_zero, "known from the map, not read"),
        row("audited", report.bytes_audited, "read both ways and compared"),
    ];
    rows.extend(report.transport_reasons.iter().map(|reason| {
        format!(
            "     not direct: {} because {}",
            HumanBytes(reason.bytes),
            reason.reason
        )
    }));
    rows.join("\n")
}

/// The end of the story: the restore is the frozen image, and the live volume is not.
fn prove(
    frozen: &blake3::Hash,
    restored: &Path,
    live: &Path,
    say: &impl Fn(String) -> Result<()>,
) -> Result<()> {
    let (now, then) = (digest(live)?, digest(restored)?);
    say(format!("     live volume now    {now}"))?;
    say(format!("     frozen image       {frozen}"))?;
    say(format!("     restored           {then}"))?;
    if then != *frozen {
        let message = "the restore differs from the frozen image: this is a defect, please report it";
        return Err(Error::new(ErrorKind::ImageBad, message).at_path(restored));
    }
    say("7. The restore equals the volume at the instant of the freeze, byte for byte.".into())
}

/// The directory of the demo.
enum Place {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Place {
    fn new(keep: Option<&Path>) -> Result<Self> {
        if let Some(directory) = keep {
            fs::create_dir_all(directory).map_err(|e| Error::io("making the directory", directory, e))?;
            takes_direct_io(directory)
                .map_err(|e| Error::io("trying O_DIRECT: choose a directory on a disk", directory, e))?;
            let directory = directory
                .canonicalize()
                .map_err(|e| Error::io("finding the directory", directory, e))?;
            return Ok(Self::Kept(directory));
        }
        let candidates = [std::env::temp_dir(), "/var/tmp".into(), ".".into()];
        for candidate in candidates.iter().filter_map(|path| path.canonicalize().ok()) {
            if takes_direct_io(&candidate).is_ok() {
                let made = tempfile::Builder::new()
                    .prefix("proxy-client-demo-")
                    .tempdir_in(&candidate);
                return made
                    .map(Self::Temporary)
                    .map_err(|e| Error::io("making a directory", &candidate, e));
            }
        }
        Err(Error::new(
            ErrorKind::Usage,
            "no directory here takes O_DIRECT; name one on a disk with --keep DIR",
        ))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }
}

fn takes_direct_io(directory: &Path) -> io::Result<()> {
    let file = tempfile::NamedTempFile::new_in(directory)?;
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(file.path())
        .map(|_| ())
}

/// The two shared disks, files both: a volume with text, noise and a hole; and room for old data. Gives the digest of the volume.
fn make_disks(lun: &Path, copy: &Path) -> Result<blake3::Hash> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| Error::io("making a disk", &path, error)
    };
    let volume = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(lun)
        .map_err(failed(lun))?;
    volume.set_len(SIZE).map_err(failed(lun))?;
    let mut chunk = vec![0; 1 << 20];
    for at in (0..SIZE - HOLE).step_by(chunk.len()) {
        for (index, word) in chunk.chunks_exact_mut(8).enumerate() {
            // Every other MiB is noise, the others compress well.
            let noise = (at >> 20) % 2 == 0;
            let value = if noise {
                random_below(u64::MAX)
            } else {
                at + index as u64 % 64
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
        volume.write_all_at(&chunk, at).map_err(failed(lun))?;
    }
    volume.sync_all().map_err(failed(lun))?;
    File::create_new(copy).map_err(failed(copy))?;
    digest(lun)
}

fn digest(path: &Path) -> Result<blake3::Hash> {
    let failed = |error| Error::io("reading a volume", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&buffer[..read]),
        };
    }
}

/// The host, in this process.
struct DemoHost {
    host: Arc<Host>,
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl DemoHost {
    /// What this command line does: `nbd-export serve --origin vol=lun.img --copy-area copy.img …`
    async fn start(place: &Place) -> Result<Self> {
        let path = |name: &str| place.path().join(name).display().to_string();
        let socket = place.path().join("nbd.sock");
        let arguments = [
            "nbd-export".to_owned(),
            "serve".to_owned(),
            format!("--origin=vol={}", path("lun.img")),
            format!("--copy-area={},size={SIZE}", path("copy.img")),
            format!("--identity={}=demo-lun", path("lun.img")),
            format!("--identity={}=demo-copy", path("copy.img")),
            format!("--socket={}", socket.display()),
            format!("--control={}", path("control.sock")),
        ];
        let parsed = HostCli::try_parse_from(arguments).map_err(host_failed)?;
        let HostVerb::Serve(serve) = parsed.verb else {
            unreachable!("the arguments above say serve")
        };
        let config = ServeConfig::try_from(&serve).map_err(host_failed)?;
        let opened = tokio::task::spawn_blocking({
            let config = config.clone();
            move || Host::open(&config)
        });
        let host = Arc::new(opened.await.map_err(host_failed)?.map_err(host_failed)?);
        let exports = Arc::clone(&host);
        let server = Server::bind(&config.listeners, exports)
            .await
            .map_err(host_failed)?;
        host.publish_at(server.addresses().clone());
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server.run(async move {
            // Dropped or sent, both mean the end.
            let _ = stopped.await;
        }));
        Ok(Self {
            host,
            socket,
            stop,
            server,
        })
    }

    fn uri(&self, export: &str) -> NbdUri {
        let export = nbd_export::proto::ExportName::new(export).expect("the demo's names are short");
        NbdUri {
            address: NbdAddress::Unix(self.socket.clone()),
            export,
        }
    }

    async fn freeze(&self) -> Result<String> {
        let host = Arc::clone(&self.host);
        let frozen = tokio::task::spawn_blocking(move || host.freeze("vol", Some("demo")));
        Ok(frozen.await.map_err(host_failed)?.map_err(host_failed)?.export)
    }

    async fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.server.await.map_err(host_failed)?;
        self.host.close();
        Ok(())
    }
}

fn host_failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::HostRefused, "the host of the demo failed").caused_by(error)
}

/// Overwrites the live volume in random places until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

impl Writer {
    async fn start(live: NbdUri) -> Result<Self> {
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
    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.map_err(host_failed)?
    }
}
