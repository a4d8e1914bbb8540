//! Files and devices that an operator declared to be disks (`--identity PATH=ID`).

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::identity::Identity;
use crate::sys::DeviceNumber;

/// What a declared path leads to, whatever path it is met by later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thing {
    File { device: DeviceNumber, inode: u64 },
    BlockDevice(DeviceNumber),
}

#[derive(Clone, Debug)]
struct Declaration {
    thing: Thing,
    path: PathBuf,
    identity: Identity,
}

/// All declarations.
#[derive(Debug)]
pub(super) struct Declared {
    declarations: Vec<Declaration>,
}

impl Declared {
    pub(super) fn new(declared: Vec<(PathBuf, Identity)>) -> io::Result<Self> {
        let mut declarations: Vec<Declaration> = Vec::new();
        for (path, identity) in declared {
            let refused = |why: String| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{} cannot be declared as {identity}: {why}", path.display()),
                )
            };
            let (thing, _) = thing_at(&path).map_err(|e| io::Error::new(e.kind(), refused(e.to_string())))?;
            let Some(thing) = thing else {
                return Err(refused("it is neither a file nor a block device".to_owned()));
            };
            // Two disks under one identity would be read for each other.
            if let Some(other) = declarations
                .iter()
                .find(|d| (d.identity == identity) != (d.thing == thing))
            {
                return Err(refused(format!(
                    "{} is declared as {} already",
                    other.path.display(),
                    other.identity
                )));
            }
            declarations.push(Declaration {
                thing,
                path,
                identity,
            });
        }
        Ok(Self { declarations })
    }

    /// The identity of a file, by the device of its file system and its inode number.
    pub(super) fn file(&self, device: DeviceNumber, inode: u64) -> Option<&Identity> {
        self.find(Thing::File { device, inode })
    }

    /// Identity and size in bytes of a declared file that is met as the backing file of a loop device.
    pub(super) fn disk_file(&self, device: DeviceNumber, inode: u64) -> Option<(Identity, io::Result<u64>)> {
        let wanted = Thing::File { device, inode };
        let declaration = self.declarations.iter().find(|d| d.thing == wanted)?;
        let size = thing_at(&declaration.path).and_then(|(thing, metadata)| {
            if thing == Some(wanted) {
                Ok(metadata.len())
            } else {
                let path = declaration.path.display();
                Err(io::Error::other(format!(
                    "{path} is not the file any more that was declared"
                )))
            }
        });
        Some((declaration.identity.clone(), size))
    }

    /// The identity of a block device.
    pub(super) fn block_device(&self, device: DeviceNumber) -> Option<&Identity> {
        self.find(Thing::BlockDevice(device))
    }

    fn find(&self, thing: Thing) -> Option<&Identity> {
        self.declarations
            .iter()
            .find(|d| d.thing == thing)
            .map(|d| &d.identity)
    }
}

/// What a path leads to now; `None` for what can be no disk.
fn thing_at(path: &Path) -> io::Result<(Option<Thing>, Metadata)> {
    let metadata = fs::metadata(path)?;
    let thing = if metadata.file_type().is_block_device() {
        Some(Thing::BlockDevice(DeviceNumber::from_stat(metadata.rdev())))
    } else if metadata.is_file() {
        Some(Thing::File {
            device: DeviceNumber::from_stat(metadata.dev()),
            inode: metadata.ino(),
        })
    } else {
        None
    };
    Ok((thing, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_belongs_to_one_disk_and_a_disk_has_one_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, b"a").unwrap();
        fs::write(&b, b"b").unwrap();
        let id = |name| Identity::from_operator(name).unwrap();

        let declared = Declared::new(vec![
            (a.clone(), id("x")),
            (a.clone(), id("x")),
            (b.clone(), id("y")),
        ])
        .unwrap();
        let metadata = fs::metadata(&b).unwrap();
        let found = declared.file(DeviceNumber::from_stat(metadata.dev()), metadata.ino());
        assert_eq!(found, Some(&id("y")));

        assert!(Declared::new(vec![(a.clone(), id("x")), (b.clone(), id("x"))]).is_err());
        assert!(Declared::new(vec![(a.clone(), id("x")), (a, id("y"))]).is_err());
        let missing = Declared::new(vec![(dir.path().join("c"), id("x"))]);
        assert_eq!(
            missing.map(drop).map_err(|e| e.kind()),
            Err(io::ErrorKind::NotFound)
        );
        assert!(Declared::new(vec![(dir.path().into(), id("x"))]).is_err());
    }
}
