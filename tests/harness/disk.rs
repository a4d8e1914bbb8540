//! Shared disks: a backing file stands for the LUN, a loop device for the host's view of it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use volmap::sys::inode_flags;

/// Runs a command that must succeed, and gives back its stdout.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// A file that stands for a LUN, with a loop device on it, gone when dropped.
pub struct LoopDisk {
    /// The backing file: what the proxy reads.
    pub lun: PathBuf,
    /// The loop device: what the host sees.
    pub device: PathBuf,
}

impl LoopDisk {
    /// A sparse LUN of `size` bytes in `directory`, with loop sectors of `sector` bytes.
    pub fn new(directory: &Path, name: &str, size: u64, sector: u32) -> Self {
        let lun = directory.join(name);
        File::create(&lun).unwrap().set_len(size).unwrap();
        Self::on(&lun, &["--sector-size", &sector.to_string()])
    }

    /// Another loop device on a LUN that is there, attached with more arguments.
    pub fn on(lun: &Path, arguments: &[&str]) -> Self {
        let all = [&["--find", "--show"], arguments, &[lun.to_str().unwrap()]].concat();
        let disk = Self {
            lun: lun.to_owned(),
            device: run("losetup", &all).trim().into(),
        };
        // A proxy that was killed while it read from this loop device has left it read-only.
        run("blockdev", &["--setrw", disk.device.to_str().unwrap()]);
        disk
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

/// A file system on a [`LoopDisk`], mounted; unmounted and detached when dropped.
pub struct Mounted {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What it is on.
    pub disk: LoopDisk,
    // Last: removed when everything in it is unmounted.
    directory: Scratch,
}

impl Mounted {
    /// XFS with reflink.
    pub fn xfs(size: u64) -> Self {
        Self::new(size, 512, "mkfs.xfs", &["-q", "-m", "reflink=1"])
    }

    /// ext4.
    pub fn ext4(size: u64) -> Self {
        Self::new(size, 512, "mkfs.ext4", &["-q", "-F"])
    }

    /// A file system made by `mkfs` on a new LUN of `size` bytes.
    pub fn new(size: u64, sector: u32, mkfs: &str, arguments: &[&str]) -> Self {
        let directory = scratch();
        let disk = LoopDisk::new(directory.path(), "lun", size, sector);
        let device = disk.device.to_str().unwrap();
        run(mkfs, &[arguments, &[device]].concat());
        let path = directory.path().join("mnt");
        std::fs::create_dir(&path).unwrap();
        run("mount", &[device, path.to_str().unwrap()]);
        Self {
            path,
            disk,
            directory,
        }
    }

    /// A directory outside the file system, on the machine's own disk.
    pub fn outside(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What a failed test left immutable would keep its clone, but never the mount.
        run("umount", &[self.path.to_str().unwrap()]);
    }
}

/// A directory on a disk, gone when dropped, with what a killed host left immutable in it.
pub struct Scratch(TempDir);

impl Scratch {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        make_mutable(self.path());
    }
}

/// Takes the immutable flag off every file below `directory`.
fn make_mutable(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => make_mutable(&entry.path()),
            Ok(kind) if kind.is_file() => {
                // O_NONBLOCK: a host that still lives may hold a lease.
                let opened = OpenOptions::new()
                    .read(true)
                    .custom_flags(nix::libc::O_NONBLOCK)
                    .open(entry.path());
                if let Ok(file) = opened
                    && inode_flags::get(&file).is_ok_and(|flags| flags.is_immutable())
                {
                    inode_flags::set_immutable(&file, false).ok();
                }
            }
            _ => {}
        }
    }
}

/// A scratch directory on a disk (a temporary directory in memory may refuse O_DIRECT).
pub fn scratch() -> Scratch {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/scratch");
    std::fs::create_dir_all(&target).unwrap();
    Scratch(tempfile::tempdir_in(target).unwrap())
}
