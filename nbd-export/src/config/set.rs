//! Which volumes belong together.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use volmap::layers::mount_at;
use volmap::sys::DeviceNumber;

use super::arguments::VolumeName;
use super::serve::{Freezing, NamedPath};
use crate::error::{Error, ErrorKind};

/// Most volumes in a set: each has open files, a lease and an export, and processes commonly have 1024 descriptors.
const MEMBERS_MAX: usize = 250;

/// Volumes that are frozen at one instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetConfig {
    /// What the set is called.
    pub name: VolumeName,
    /// Its volumes.
    pub members: Vec<SetMember>,
    /// Volumes that are served under copy-before-write, too.
    pub origins: Vec<VolumeName>,
    /// How they are frozen.
    pub freezing: Freezing,
}

/// A volume of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetMember {
    /// What it is called.
    pub name: VolumeName,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is there for the file system on it, and what nobody has of that is left out.
    pub is_file_system: bool,
}

impl SetMember {
    fn whole(NamedPath { name, path }: NamedPath) -> Self {
        Self {
            name,
            path,
            is_file_system: false,
        }
    }
}

/// What a set is of.
#[derive(Debug)]
pub(super) struct Members<'a> {
    /// Volumes by name.
    pub(super) volumes: Vec<NamedPath>,
    /// Patterns of files.
    pub(super) files: &'a [String],
    /// Mount points.
    pub(super) file_systems: &'a [PathBuf],
    /// Origins by name.
    pub(super) origins: Vec<VolumeName>,
}

impl SetConfig {
    /// The names of all that it is of.
    pub(super) fn names(&self) -> impl Iterator<Item = &VolumeName> {
        let members = self.members.iter().map(|member| &member.name);
        members.chain(&self.origins)
    }

    /// A set. Patterns are looked up here, once.
    pub(super) fn new(name: VolumeName, of: Members<'_>, freezing: Freezing) -> Result<Self, Error> {
        let mut members: Vec<SetMember> = of.volumes.into_iter().map(SetMember::whole).collect();
        for pattern in of.files {
            members.extend(files(pattern)?.into_iter().map(SetMember::whole));
        }
        for mount_point in of.file_systems {
            members.push(file_system(mount_point)?);
        }
        let count = members.len() + of.origins.len();
        if count == 0 {
            return Err(usage(format!(
                "the set {name}: say of what: volumes, files, file systems or origins"
            )));
        }
        if count > MEMBERS_MAX {
            return Err(usage(format!(
                "the set {name}: {count} volumes are more than the {MEMBERS_MAX} that one set may have"
            )));
        }
        let mut named = BTreeSet::new();
        if let Some(origin) = of.origins.iter().find(|origin| !named.insert(*origin)) {
            return Err(usage(format!(
                "the set {name}: the origin {origin} is named twice"
            )));
        }
        Ok(Self {
            name,
            members,
            origins: of.origins,
            freezing,
        })
    }
}

/// The files that a pattern stands for, sorted. What is no file is not left out silently.
fn files(pattern: &str) -> Result<Vec<NamedPath>, Error> {
    let refused = |why: String| usage(format!("files {pattern}: {why}"));
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
        Ok(NamedPath { name, path })
    };
    paths.into_iter().map(member).collect()
}

/// The block device that a file system is mounted from.
fn file_system(mount_point: &Path) -> Result<SetMember, Error> {
    let refused = |why: String| usage(format!("file system {}: {why}", mount_point.display()));
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
    Ok(SetMember {
        name,
        path: path_of_device,
        is_file_system: true,
    })
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}
