//! Whether one path stands on another: an output must not lie on a LUN that is being read.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One thing that bytes are kept in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Holder {
    Device(u64),
    File { device: u64, inode: u64 },
}

/// Whether the bytes of `output` (which need not exist yet) lie on `lun`, or are it: through its file system, partitions,
/// device-mapper, md and loop devices, as sysfs tells them.
///
/// # Errors
/// One of the paths cannot be looked at.
pub fn lies_on(output: &Path, lun: &Path) -> io::Result<bool> {
    let lun = holder(&fs::metadata(lun)?);
    let mut seen = BTreeSet::new();
    let mut next = match fs::metadata(output) {
        Ok(metadata) => vec![holder(&metadata)],
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = output
                .parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            vec![Holder::Device(fs::metadata(directory)?.dev())]
        }
        Err(error) => return Err(error),
    };
    while let Some(at) = next.pop() {
        if at == lun {
            return Ok(true);
        }
        if seen.insert(at) {
            next.extend(below(at));
        }
    }
    Ok(false)
}

fn holder(metadata: &fs::Metadata) -> Holder {
    if metadata.file_type().is_block_device() {
        Holder::Device(metadata.rdev())
    } else {
        Holder::File {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// What directly holds the bytes of `at`; nothing where the system does not tell (a network file system, say).
fn below(at: Holder) -> Vec<Holder> {
    let device = match at {
        Holder::File { device, .. } => return vec![Holder::Device(device)],
        Holder::Device(device) => device,
    };
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let mut found = Vec::new();
    if let Ok(backing) = fs::read_to_string(sysfs.join("loop/backing_file"))
        && let Ok(metadata) = fs::metadata(backing.trim_end_matches('\n'))
    {
        found.push(holder(&metadata));
    }
    if sysfs.join("partition").exists() {
        found.extend(
            fs::canonicalize(&sysfs)
                .ok()
                .and_then(|path| device_number(path.parent()?)),
        );
    }
    for slave in fs::read_dir(sysfs.join("slaves")).into_iter().flatten().flatten() {
        found.extend(device_number(&slave.path()));
    }
    found
}

fn device_number(sysfs: &Path) -> Option<Holder> {
    let text = fs::read_to_string(sysfs.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(Holder::Device(nix::sys::stat::makedev(
        major.parse().ok()?,
        minor.parse().ok()?,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lies_on_itself_and_not_on_its_neighbour() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert!(lies_on(&a, &a).unwrap());
        assert!(!lies_on(&a, &b).unwrap());
        assert!(!lies_on(&directory.path().join("new"), &b).unwrap());
        std::os::unix::fs::symlink(&a, directory.path().join("link")).unwrap();
        assert!(lies_on(&directory.path().join("link"), &a).unwrap());
    }
}
