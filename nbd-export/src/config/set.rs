//! `--set`: which volumes belong together.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use volmap::layers::mount_at;
use volmap::sys::DeviceNumber;

use super::arguments::{NameError, VolumeName, volume};
use super::serve::VolumeConfig;
use crate::cli::ServeArgs;
use crate::error::{Error, ErrorKind};

/// Most volumes in a set: each has open files, a lease and an export, and processes commonly have 1024 descriptors.
const MEMBERS_MAX: usize = 250;

/// Volumes that are frozen at one instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetConfig {
    /// What the set is called.
    pub name: VolumeName,
    /// Its volumes.
    pub members: Vec<VolumeConfig>,
}

impl SetConfig {
    /// The set that the arguments ask for, if they do. Patterns are looked up here, once.
    pub(super) fn new(args: &ServeArgs) -> Result<Option<Self>, Error> {
        let Some(name) = &args.set else { return Ok(None) };
        let name = name
            .parse()
            .map_err(|why: NameError| usage(format!("--set {name}: {why}")))?;
        let mut members = Vec::new();
        for argument in &args.volume {
            let (name, path) = volume(argument)?;
            members.push(VolumeConfig { name, path });
        }
        for pattern in &args.files {
            members.extend(files(pattern)?);
        }
        for mount_point in &args.filesystem {
            members.push(file_system(mount_point)?);
        }
        if members.is_empty() {
            return Err(usage(format!(
                "--set {name}: say of what, with --volume, --files or --filesystem"
            )));
        }
        if members.len() > MEMBERS_MAX {
            return Err(usage(format!(
                "--set {name}: {} volumes are more than the {MEMBERS_MAX} that one set may have",
                members.len()
            )));
        }
        Ok(Some(Self { name, members }))
    }
}

/// The files that a pattern stands for, sorted. What is no file is not left out silently.
fn files(pattern: &str) -> Result<Vec<VolumeConfig>, Error> {
    let refused = |why: String| usage(format!("--files {pattern}: {why}"));
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        // Hidden files are asked for by name: our own clones are hidden.
        require_literal_leading_dot: true,
    };
    let paths = if Path::new(pattern).exists() {
        // A name with brackets, say, that a shell has found already.
        vec![PathBuf::from(pattern)]
    } else {
        glob::glob_with(pattern, options)
            .map_err(|why| refused(why.to_string()))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| refused(why.to_string()))?
    };
    if paths.is_empty() {
        return Err(refused("no file is called so".to_owned()));
    }
    let member = |path: PathBuf| {
        let metadata = fs::metadata(&path).map_err(|why| refused(format!("{}: {why}", path.display())))?;
        if !metadata.is_file() {
            return Err(refused(format!(
                "{} is no file: give a pattern of files alone",
                path.display()
            )));
        }
        let name = VolumeName::from_path(&path).map_err(|why| refused(why.to_string()))?;
        Ok(VolumeConfig { name, path })
    };
    paths.into_iter().map(member).collect()
}

/// The block device that a file system is mounted from.
fn file_system(mount_point: &Path) -> Result<VolumeConfig, Error> {
    let refused = |why: String| usage(format!("--filesystem {}: {why}", mount_point.display()));
    let path = fs::canonicalize(mount_point).map_err(|why| refused(why.to_string()))?;
    let metadata = fs::metadata(&path).map_err(|why| refused(why.to_string()))?;
    let mounted = mount_at(&path).map_err(|why| refused(why.to_string()))?;
    let Some(mount) = mounted else {
        return Err(refused(
            "it is no mount point; give that of the file system that it lies in".to_owned(),
        ));
    };
    let device = DeviceNumber::from_stat(metadata.dev());
    let is_it = |path: &Path| {
        fs::metadata(path).is_ok_and(|found| {
            found.file_type().is_block_device() && DeviceNumber::from_stat(found.rdev()) == device
        })
    };
    let by_number = PathBuf::from(format!("/dev/block/{device}"));
    // The name that people know it by, if it still is that.
    let path_of_device = if is_it(&mount.source) {
        mount.source
    } else if is_it(&by_number) {
        fs::canonicalize(&by_number).unwrap_or(by_number)
    } else {
        return Err(refused(format!(
            "a file system of type {} lies on no block device of its own",
            mount.kind
        )));
    };
    let name = match path.file_name() {
        None => "root".parse(),
        Some(_) => VolumeName::from_path(&path),
    }
    .map_err(|why| refused(why.to_string()))?;
    Ok(VolumeConfig {
        name,
        path: path_of_device,
    })
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}
