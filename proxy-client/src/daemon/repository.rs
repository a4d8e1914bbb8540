//! The repository: a directory with one directory for each host, in it one for each volume, in that the images.
//!
//! ```text
//! REPOSITORY/HOST/VOLUME/20261122T103000Z-17.vbi.zst        an image, whole
//! REPOSITORY/HOST/VOLUME/20261122T103000Z-17.json           what it is (docs/daemon.md)
//! REPOSITORY/HOST/VOLUME/20261122T103000Z-17.vbi.zst.partial   one that is under way
//! REPOSITORY/HOST/VOLUME/20261122T103000Z-17.vbi.zst.bad    one that did not verify
//! REPOSITORY/HOST/set@20261122T103000Z-17.json              which images are of one frozen set (docs/sets.md); no volume has an @
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_export::proxy::JobRequest;

use super::clock::stamp;
use super::config::is_file_name;
use crate::error::{Error, ErrorKind, Result};
use crate::job::set::SetManifest;

const IMAGE: &str = ".vbi.zst";

/// Where the image of a job goes, relative to the repository.
pub(super) fn image_name(request: &JobRequest, id: u64, submitted: i64) -> String {
    format!(
        "{}/{}/{}-{id}{IMAGE}",
        request.host,
        request.volume,
        stamp(submitted)
    )
}

/// A repository that is ours alone.
#[derive(Debug)]
pub(super) struct Repository {
    root: PathBuf,
    /// Locked, so that no other daemon works here.
    _lock: File,
    sets: Mutex<()>,
}

impl Repository {
    /// Opens it. The directory has to be there: a repository whose disk is not mounted is not to be made in its place.
    ///
    /// # Errors
    /// It is not there, or another daemon's.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let failed = |error| Error::io("opening the repository", root, error);
        let root = fs::canonicalize(root).map_err(failed)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join(".lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                root,
                _lock: lock,
                sets: Mutex::default(),
            }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::new(ErrorKind::Io, "another daemon works in this repository").at_path(root))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that are free.
    pub(super) fn free(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.root)
            .map_or(0, |about| about.blocks_available() * about.fragment_size())
    }

    /// The path of an image, in directories that are there. What the queue says is looked at again: it may be of another version.
    ///
    /// # Errors
    /// A name that is none, or directories that cannot be made or lead elsewhere.
    pub(super) fn place(&self, image: &str) -> Result<PathBuf> {
        let Some([host, volume, file]) = parts_of(image) else {
            return Err(outside(image));
        };
        let directory = self.root.join(host).join(volume);
        let failed = |error| Error::io("making a place for the image", &directory, error);
        if !directory.exists() {
            fs::create_dir_all(&directory).map_err(failed)?;
            // The names of the directories are to last as long as the image.
            for above in [&self.root, &self.root.join(host)] {
                sync_directory(above).map_err(failed)?;
            }
        }
        // Somebody may have put a symbolic link there.
        if fs::canonicalize(&directory).map_err(failed)? != directory {
            return Err(outside(image));
        }
        Ok(directory.join(file))
    }

    /// The path of an image that has its manifest; `None` where there is no such image.
    pub(super) fn filed(&self, image: &str) -> Option<PathBuf> {
        let [host, volume, file] = parts_of(image)?;
        let path = self.root.join(host).join(volume).join(file);
        manifest_of(&path).exists().then_some(path)
    }

    /// Who files the manifests of sets does so alone.
    pub(super) fn sets(&self) -> MutexGuard<'_, ()> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an image is there that is under way, or was.
    pub(super) fn has_unfinished(&self, image: &Path) -> bool {
        partial_of(image).exists()
    }

    /// Removes what is left of an image that was under way.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn clear(&self, image: &Path) -> Result<bool> {
        let partial = partial_of(image);
        match fs::remove_file(&partial) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("removing what is left of an image", &partial, error)),
        }
    }

    /// Removes an image, and its manifest before it; first of all that of a set that it was filed in.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn forget(&self, image: &Path) -> Result<()> {
        self.forget_sets_of(image)?;
        for path in [&manifest_of(image), image] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("removing an image", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes an image that did not verify out of those that are good.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn set_aside(&self, image: &Path) -> Result<()> {
        self.forget_sets_of(image)?;
        let mut aside = image.as_os_str().to_owned();
        aside.push(".bad");
        fs::rename(image, &aside)
            .and_then(|()| sync_directory(parent(image)))
            .map_err(|error| Error::io("setting a bad image aside", image, error))
    }

    /// Removes the manifests of sets that name an image: without it they are no sets.
    fn forget_sets_of(&self, image: &Path) -> Result<()> {
        let _alone = self.sets();
        let host = parent(parent(image));
        let failed = |error| Error::io("looking for manifests of sets", host, error);
        for entry in fs::read_dir(host).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_set = path.is_file() && path.extension().is_some_and(|extension| extension == "json");
            // One that cannot be read names nobody.
            let manifest = is_set.then(|| SetManifest::read(&path).ok()).flatten();
            if manifest.is_some_and(|set| set.images.iter().any(|of| host.join(&of.file) == image)) {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Writes the manifest beside an image: it is there as a whole, or not at all.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn file_manifest(&self, image: &Path, text: &str) -> Result<()> {
        write_whole(&manifest_of(image), text)
    }

    /// Writes the manifest of a set of a host, in the same way: where it is.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn file_set_manifest(&self, host: &str, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.root.join(host).join(format!("{name}.json"));
        write_whole(&path, text)?;
        Ok(path)
    }
}

/// The host, the volume and the file of an image, if its name is one of ours.
fn parts_of(image: &str) -> Option<[&str; 3]> {
    let parts: [&str; 3] = image.split('/').collect::<Vec<_>>().try_into().ok()?;
    let [host, volume, file] = parts;
    let is_ours =
        [host, volume].into_iter().all(is_file_name) && file.ends_with(IMAGE) && !file.starts_with('.');
    is_ours.then_some(parts)
}

fn write_whole(path: &Path, text: &str) -> Result<()> {
    let partial = partial_of(path);
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_directory(parent(path))
    };
    write().map_err(|error| Error::io("writing the manifest", path, error))
}

fn outside(image: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("{image} is no place in the repository"))
}

fn manifest_of(image: &Path) -> PathBuf {
    let name = image.to_string_lossy();
    PathBuf::from(format!("{}.json", name.strip_suffix(IMAGE).unwrap_or(&name)))
}

fn partial_of(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::set::SetImage;

    #[test]
    fn images_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("r");
        assert!(Repository::open(&root).is_err(), "it is not made");
        fs::create_dir(&root).unwrap();
        let repository = Repository::open(&root).unwrap();
        assert!(Repository::open(&root).is_err(), "it is somebody's");
        let place = repository.place("web/vm/1-1.vbi.zst").unwrap();
        assert!(place.starts_with(repository.root()) && place.parent().unwrap().is_dir());
        for bad in [
            "../vm/1.vbi.zst",
            "web/../1.vbi.zst",
            "web/vm/../../../x.vbi.zst",
            "/etc/x/1.vbi.zst",
            "web/1.vbi.zst",
            "web/vm/.vbi.zst",
            "web/vm/passwd",
        ] {
            assert!(repository.place(bad).is_err(), "{bad}");
        }
        std::os::unix::fs::symlink(directory.path(), root.join("link")).unwrap();
        fs::create_dir(directory.path().join("vm")).unwrap();
        assert!(repository.place("link/vm/1.vbi.zst").is_err());
    }

    #[test]
    fn manifests_and_leftovers() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::open(directory.path()).unwrap();
        let image = repository.place("web/vm/1-1.vbi.zst").unwrap();
        assert!(!repository.clear(&image).unwrap());
        fs::write(partial_of(&image), "half").unwrap();
        assert!(repository.clear(&image).unwrap());
        repository.file_manifest(&image, "{}").unwrap();
        assert_eq!(
            fs::read_to_string(image.with_file_name("1-1.json")).unwrap(),
            "{}"
        );
        fs::write(&image, "bad").unwrap();
        let set = |name: &str, file: &str| {
            let image = SetImage {
                volume: "vm".to_owned(),
                file: file.to_owned(),
                frozen: None,
                root: String::new(),
                size: 0,
            };
            let manifest = SetManifest::new(None, None, vec![image]);
            let text = serde_json::json!(manifest).to_string();
            repository.file_set_manifest("web", name, &text).unwrap()
        };
        let (ours, other) = (set("set@1", "vm/1-1.vbi.zst"), set("set@2", "vm/1-2.vbi.zst"));
        repository.set_aside(&image).unwrap();
        assert!(
            !ours.exists() && other.exists(),
            "a set without its image is none"
        );
        assert_eq!(ours.file_name().unwrap(), "set@1.json");
        repository.forget(&image.with_file_name("1-2.vbi.zst")).unwrap();
        assert!(!other.exists());
        assert!(!image.exists() && image.with_file_name("1-1.vbi.zst.bad").exists());
        assert!(repository.free() > 0);
    }
}
