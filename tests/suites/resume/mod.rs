//! Backups that are killed, stopped or cut off, and finished by `resume`.

mod endings;
mod kills;
mod refusals;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use tests::cutting_proxy::{Cut, CuttingProxy};
use tests::disk::Mounted;
use tests::program::{self, Running};
use tests::site::{Site, VOLUME, text};

/// A volume that is frozen, and its LUN.
struct Scene {
    site: Site,
}

impl Scene {
    /// `data` bytes of it are no zeroes.
    fn new(data: usize) -> Self {
        let mut bytes = vec![0; data / 2];
        let mut state = 1_u64;
        for chunk in bytes.chunks_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&(state >> 20).to_le_bytes()[..chunk.len()]);
        }
        // Zeroes that are data, and a tail that ends in the middle of a leaf.
        let again = bytes.clone();
        bytes.resize(data, 0);
        bytes.extend_from_slice(&again);
        bytes.extend_from_slice(b"end");
        let mut site = Site::new(Mounted::xfs(1 << 30), &bytes);
        site.serve(&[]);
        Self { site }
    }

    fn image(&self) -> PathBuf {
        self.site.image()
    }

    fn partial(&self) -> PathBuf {
        self.image().with_extension("zst.partial")
    }

    /// Arguments of a backup over `uri`, with a checkpoint a MiB.
    fn backup_of(&self, uri: &str) -> Vec<String> {
        let lun = format!("lun0={}", self.site.disk.disk.lun.display());
        [
            "--error-format",
            "json",
            "backup",
            uri,
            "--json",
            "--checkpoint-every",
            "1M",
            "--host-is-this-machine",
            "--lun",
            &lun,
            "--output",
            text(&self.image()),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn backup(&self) -> Vec<String> {
        self.backup_of(&self.site.uri(VOLUME))
    }

    fn resume(&self, more: &[&str]) -> Vec<String> {
        let image = self.image();
        [
            "--error-format",
            "json",
            "resume",
            text(&image),
            "--json",
            "--checkpoint-every",
            "1M",
            "--host-is-this-machine",
        ]
        .iter()
        .chain(more)
        .map(|&argument| argument.to_owned())
        .collect()
    }

    /// The image is as if nobody had come in between.
    fn assert_right(&self, report: &Output, root: &str) {
        assert!(
            report.status.success(),
            "{}",
            String::from_utf8_lossy(&report.stderr)
        );
        let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
        assert_eq!(report["root"], root);
        if let Some(direct) = report["bytes_direct"].as_u64() {
            let part = |name: &str| report[name].as_u64().unwrap();
            assert_eq!(
                direct + part("bytes_nbd") + part("bytes_zero"),
                part("size"),
                "{report}"
            );
        }
        self.assert_image_is_right();
    }

    fn assert_image_is_right(&self) {
        assert_eq!(self.site.image_digest(), self.site.original);
        program::proxy_client(&["verify", text(&self.image())]);
        assert!(!self.partial().exists());
    }
}

fn start(arguments: &[String]) -> Running {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    program::start("proxy-client", &arguments, Stdio::null())
}

/// Runs a backup or a resumption that the kernel kills at byte `limit` of the image, as abruptly as `kill -9` does.
pub(crate) fn run_up_to(limit: u64, arguments: &[String]) -> Output {
    let output = Command::new("prlimit")
        .args(["--core=0", &format!("--fsize={limit}")])
        .arg(program::built("proxy-client"))
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        None,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A way to the host on which nothing comes any more after 40 MiB of data, until this is dropped.
struct Stalling {
    way: CuttingProxy,
    _go_on: mpsc::Sender<()>,
}

impl Stalling {
    fn new(scene: &Scene) -> Self {
        let (go_on, stalled) = mpsc::channel::<()>();
        let cut = Cut {
            connection: 1,
            after: 40 << 20,
        };
        let way = CuttingProxy::with_action(&scene.site.socket(), cut, move || {
            stalled.recv().ok();
        });
        Self { way, _go_on: go_on }
    }

    /// Arguments of a backup that gets everything by this way.
    fn backup(&self, scene: &Scene) -> Vec<String> {
        let mut arguments = scene.backup_of(&self.way.uri(VOLUME));
        let at = arguments.iter().position(|a| a == "--lun").unwrap();
        arguments.drain(at..at + 2);
        arguments
    }
}

/// Waits until an unfinished image has some checkpoints in it. It has to be of a backup that cannot end by itself.
fn wait_for_checkpoints(running: &mut Running, partial: &Path) {
    running.wait_for(partial);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(100);
    // The first half of the data is noise, so the file grows as fast as the work, with a checkpoint a batch at least.
    let length = || std::fs::metadata(partial).map_or(0, |metadata| metadata.len());
    while length() < 4 << 20 {
        assert!(running.is_alive(), "it ended before it could be disturbed");
        assert!(std::time::Instant::now() < deadline, "no checkpoint came");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
