//! A site: a host that serves one volume on a shared disk, and a proxy in this process that backs it up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbd_export::uri::NbdUri;
use proxy_client::config::{ImagePath, LunArgument};
use proxy_client::error::{Error, ErrorKind};
use proxy_client::job::backup::{BackupOptions, backup};
use proxy_client::progress::Progress;
use proxy_client::report::BackupReport;
use proxy_client::transport::direct::LunOpener;

use crate::digest;
use crate::disk::Mounted;
use crate::image::assert_nothing_left;
use crate::program::{Host, nbd_export};

/// The name of the volume, and of its export.
pub const VOLUME: &str = "vm";

/// A volume file on a file system on a loop device, whose backing file is the LUN `lun0`.
pub struct Site {
    // First: it holds files in the file system open.
    host: Option<Host>,
    /// The file system.
    pub disk: Mounted,
    /// Digest of the volume when it was made.
    pub original: blake3::Hash,
}

impl Site {
    /// A volume of `bytes` on a file system; nothing serves it yet.
    pub fn new(disk: Mounted, bytes: &[u8]) -> Self {
        let site = Self {
            host: None,
            disk,
            original: blake3::hash(bytes),
        };
        fs::write(site.volume(), bytes).unwrap();
        site
    }

    /// The volume: a file.
    pub fn volume(&self) -> PathBuf {
        self.path("vm.img")
    }

    /// A path in the file system.
    pub fn path(&self, name: &str) -> PathBuf {
        self.disk.path.join(name)
    }

    /// What a host of the volume is started with.
    pub fn serve_arguments(&self) -> Vec<String> {
        let path = |path: PathBuf| text(&path).to_owned();
        vec![
            format!("{VOLUME}={}", self.volume().display()),
            "--identity".to_owned(),
            format!("{}=lun0", self.disk.disk.device.display()),
            "--socket".to_owned(),
            path(self.socket()),
            "--control".to_owned(),
            path(self.control()),
        ]
    }

    /// Starts a host for the volume, with more arguments.
    pub fn serve(&mut self, more: &[&str]) {
        let arguments = self.serve_arguments();
        let arguments: Vec<&str> = arguments
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        self.host = Some(Host::serve(&arguments));
    }

    /// Takes the host out, so that a test may end it.
    pub fn take_host(&mut self) -> Host {
        self.host.take().unwrap()
    }

    /// The NBD socket of the host.
    pub fn socket(&self) -> PathBuf {
        self.disk.outside().join("nbd")
    }

    /// The control socket of the host.
    pub fn control(&self) -> PathBuf {
        self.disk.outside().join("control")
    }

    /// The one clone that the host made of the volume.
    pub fn clone_of_volume(&self) -> PathBuf {
        let entries = fs::read_dir(&self.disk.path)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let clones: Vec<PathBuf> = entries
            .filter(|path| path.extension().is_some_and(|e| e == "frozen"))
            .collect();
        assert_eq!(clones.len(), 1, "{clones:?}");
        clones[0].clone()
    }

    /// Where a file lies on the LUN now: offset in the file, length, offset on the LUN.
    pub fn extents(&self, file: &Path) -> Vec<(u64, u64, u64)> {
        let identity = format!("{}=lun0", self.disk.disk.device.display());
        let map = nbd_export(&["map", text(file), "--identity", &identity, "--json"]);
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        map["extents"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|extent| extent["direct"] == true)
            .map(|extent| {
                let disk = extent["chain"].as_array().unwrap().last().unwrap();
                (
                    number(&extent["offset"]),
                    number(&extent["length"]),
                    number(&disk["offset"]),
                )
            })
            .collect()
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// Options of a backup of an export, with the LUN.
    pub fn options(&self, uri: &str) -> BackupOptions {
        let uri = uri.parse::<NbdUri>().unwrap();
        let mut options = BackupOptions::new(uri, ImagePath::File(self.image()));
        options.luns = vec![LunArgument::parse(&format!("lun0={}", self.disk.disk.lun.display())).unwrap()];
        // A host that does not come back is waited for, and tests wait too.
        options.nbd.reconnect = Duration::from_secs(10);
        options
    }

    /// Where a backup goes.
    pub fn image(&self) -> PathBuf {
        self.disk.outside().join("image.vbi.zst")
    }

    /// Backs the volume up, in this process.
    ///
    /// # Errors
    /// As the job.
    pub fn backup(&self, opener: &dyn LunOpener) -> Result<BackupReport, Error> {
        run_backup(&self.options(&self.uri(VOLUME)), opener)
    }

    /// Digest of what stock zstd makes of the image.
    pub fn image_digest(&self) -> blake3::Hash {
        digest::of_command(Command::new("zstd").args(["-dcq", text(&self.image())]))
    }

    /// A backup must have succeeded, with the original bytes in it.
    pub fn assert_right(&self, outcome: Result<BackupReport, Error>) -> BackupReport {
        let report = outcome.unwrap_or_else(|error| panic!("{:?}: {error}", error.kind()));
        assert_eq!(
            self.image_digest(),
            self.original,
            "the image is not the frozen volume: {report:?}"
        );
        report
    }

    /// A backup must have failed in one way, with nothing left behind.
    pub fn assert_failed(&self, outcome: Result<BackupReport, Error>, kind: ErrorKind) -> Error {
        let Err(error) = outcome else {
            let right = self.image_digest() == self.original;
            panic!("it must fail with {kind}; the image that it made instead is right: {right}");
        };
        assert_eq!(error.kind(), kind, "{error}");
        assert_nothing_left(&self.image());
        error
    }
}

/// Runs a backup job in this process.
///
/// # Errors
/// As the job.
pub fn run_backup(options: &BackupOptions, opener: &dyn LunOpener) -> Result<BackupReport, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let outcome = runtime.block_on(backup(options, opener, &Progress::hidden()));
    // As the program does: a read that hangs keeps its thread.
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
