//! The main job on real file systems: a volume that is written to is frozen, backed up from its disk, and restored.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tests::disk::{LoopDisk, Mounted, run};
use tests::program::{Host, backup, proxy_client};
use tests::{digest, needs_loop_devices};

/// A volume file of `size` bytes with a real ext4 on it, filled with files of this machine until it is `fill` full.
fn volume_with_files(directory: &Path, size: u64, fill: u64) -> PathBuf {
    let volume = directory.join("vm.img");
    fs::File::create(&volume).unwrap().set_len(size).unwrap();
    run("mkfs.ext4", &["-q", "-F", volume.to_str().unwrap()]);
    let mount = directory.join("fill");
    fs::create_dir(&mount).unwrap();
    let disk = LoopDisk::on(&volume, &[]);
    run("mount", &[disk.device.to_str().unwrap(), mount.to_str().unwrap()]);
    // Copies of real files, again and again, until enough is in it; the last copy may meet the end of the space.
    let filled = || {
        nix::sys::statvfs::statvfs(&mount)
            .map(|s| (s.blocks() - s.blocks_free()) * s.fragment_size())
            .unwrap()
    };
    for copy in 0.. {
        let to = mount.join(copy.to_string());
        Command::new("cp")
            .args(["-a", "/usr/share", to.to_str().unwrap()])
            .output()
            .unwrap();
        if filled() >= fill {
            break;
        }
    }
    run("umount", &[mount.to_str().unwrap()]);
    volume
}

/// Threads that overwrite a file in random places until dropped.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Writers {
    fn start(path: &Path, count: u64) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..count)
            .map(|seed| {
                let (path, stop, written) = (path.to_owned(), Arc::clone(&stop), Arc::clone(&written));
                thread::spawn(move || {
                    let file = OpenOptions::new().write(true).open(path).unwrap();
                    let size = file.metadata().unwrap().len();
                    let mut state = seed * 2 + 1;
                    while !stop.load(Ordering::Relaxed) {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let at = ((state >> 16) % (size - 65536)) & !511;
                        file.write_all_at(&[state.to_le_bytes()[7]; 65536], at).unwrap();
                        written.fetch_add(65536, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self {
            stop,
            written,
            threads,
        }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.written.load(Ordering::Relaxed)
    }
}

/// The clone that the reflink provider made of a volume.
fn clone_of(volume: &Path) -> PathBuf {
    let clones: Vec<PathBuf> = fs::read_dir(volume.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(".frozen"))
        .collect();
    assert_eq!(clones.len(), 1, "{clones:?}");
    clones[0].clone()
}

#[test]
fn a_volume_on_xfs_is_backed_up_from_its_disk_while_it_is_overwritten() {
    needs_loop_devices!("mkfs.xfs", "mkfs.ext4", "zstd");
    const GIB: u64 = 1 << 30;
    let xfs = Mounted::xfs(5 * GIB);
    let volume = volume_with_files(&xfs.path, 5 * GIB / 4, GIB);
    let socket = xfs.outside().join("nbd.sock");
    let identity = format!("{}=lun0", xfs.disk.device.display());
    let source = format!("vm={}", volume.display());
    let control = xfs.outside().join("control.sock");
    let host = Host::serve(&[
        &source,
        "--socket",
        socket.to_str().unwrap(),
        "--identity",
        &identity,
        "--control",
        control.to_str().unwrap(),
    ]);
    let writers = Writers::start(&volume, 2);

    let image = xfs.outside().join("vm.vbi.zst");
    let lun = format!("lun0={}", xfs.disk.lun.display());
    let image_path = image.to_str().unwrap();
    let report = backup(&[
        host.uri("vm"),
        "--output",
        image_path,
        "--lun",
        &lun,
        "--require-direct",
        "95",
        "--audit",
        "1",
    ]);

    let frozen = digest::of_file(&clone_of(&volume));
    assert!(writers.stop() > 0);
    assert_ne!(
        digest::of_file(&volume),
        frozen,
        "the writers changed the live volume"
    );
    assert_eq!(
        digest::of_command(Command::new("zstd").args(["-dc", image_path])),
        frozen
    );
    let restored = xfs.outside().join("restored.img");
    proxy_client(&["restore", image_path, "--output", restored.to_str().unwrap()]);
    assert_eq!(digest::of_file(&restored), frozen);
    proxy_client(&["verify", image_path]);

    let bytes = |field: &str| report[field].as_u64().unwrap();
    assert_eq!(bytes("size"), 5 * GIB / 4);
    assert!(bytes("bytes_direct") > GIB / 2, "{report}");
    assert!(report["percent_direct"].as_f64().unwrap() >= 95.0, "{report}");
    assert!(bytes("bytes_audited") > 0, "{report}");
    assert_eq!(report["identity"][0]["lun"], "id:lun0");
    assert_eq!(report["identity"][0]["proof"], "sampled only");

    assert!(host.terminate().success());
    let left: Vec<_> = fs::read_dir(&xfs.path)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_str().unwrap().ends_with(".frozen")),
        "the clone is removed: {left:?}"
    );
}
