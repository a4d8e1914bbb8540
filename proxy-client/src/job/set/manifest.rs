//! The manifest of a set: which images belong together.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::directory::directory_of;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{End, Header};
use crate::image_source::ImageSource;

/// Its version; a reader refuses one that it does not know.
const VERSION: u32 = 1;

/// Bytes of a manifest at most: thousands of volumes.
const BYTES_MAX: u64 = 4 << 20;

/// What a set is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetManifest {
    /// Version of the manifest.
    pub set_manifest: u32,
    /// The frozen set, as the host calls it; null where the volumes are no set of the host, and nothing says that they are of one
    /// instant.
    pub set: Option<String>,
    /// When it was frozen, as the host says of its first volume.
    pub frozen_at: Option<String>,
    /// Its images.
    pub images: Vec<SetImage>,
}

/// An image of a set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetImage {
    /// The volume.
    pub volume: String,
    /// The file, beside the manifest or below its directory.
    pub file: String,
    /// UUID of the frozen image; null for a server that publishes none.
    pub frozen: Option<String>,
    /// Root of the image.
    pub root: String,
    /// Bytes of the volume.
    pub size: u64,
}

impl SetImage {
    /// What an image says of itself.
    pub(super) fn new(volume: String, file: String, header: &Header, end: &End) -> Self {
        Self {
            volume,
            file,
            frozen: (!header.frozen.is_nil()).then(|| header.frozen.to_string()),
            root: end.root.to_string(),
            size: end.size,
        }
    }

    /// Holds the image to what the manifest says of it.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`]: it is another one.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let (header, end) = ImageSource::open(path)?.outline()?;
        let found = Self::new(self.volume.clone(), self.file.clone(), &header, &end);
        if found == *self {
            return Ok(());
        }
        let message = "this is not the image that belongs to the set";
        Err(Error::new(ErrorKind::ImageBad, message).at_path(path))
    }
}

impl SetManifest {
    pub(crate) fn new(set: Option<String>, frozen_at: Option<String>, images: Vec<SetImage>) -> Self {
        Self {
            set_manifest: VERSION,
            set,
            frozen_at,
            images,
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ErrorKind::ImageBad`]: it is none, or was changed. [`ErrorKind::ImageUnsupported`], [`ErrorKind::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("reading the manifest", path, error);
        let mut text = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
        let bad = |message: &str| Error::new(ErrorKind::ImageBad, message.to_owned()).at_path(path);
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| bad("this is no manifest of a set").caused_by(error))?;
        if manifest.set_manifest != VERSION {
            let message = "the manifest is of another version";
            return Err(Error::new(ErrorKind::ImageUnsupported, message).at_path(path));
        }
        for image in &manifest.images {
            if !is_below(&image.file) || !is_plain(&image.volume) {
                return Err(bad("a name in the manifest leads elsewhere"));
            }
        }
        Ok(manifest)
    }

    /// Where its images are, if the manifest is at `path`.
    pub(super) fn paths<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a SetImage, PathBuf)> {
        self.images
            .iter()
            .map(|image| (image, directory_of(path).join(&image.file)))
    }
}

/// Whether a name stays in its directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Whether a relative path stays below its directory.
fn is_below(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(is_plain)
}

/// Whether a file is a manifest and no image: JSON begins with a brace, and an image never does.
pub fn is_manifest(path: &Path) -> bool {
    let mut first = [0];
    path.is_file()
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut first).is_ok())
        && first == *b"{"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_manifest_stay_below_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.json");
        let read = |volume: &str, file: &str| {
            let image = SetImage {
                volume: volume.to_owned(),
                file: file.to_owned(),
                frozen: None,
                root: String::new(),
                size: 0,
            };
            let manifest = SetManifest::new(None, None, vec![image]);
            std::fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
            SetManifest::read(&path)
        };
        for file in ["a.vbi", "vm/a.vbi", "x/y/z"] {
            let manifest = read("vm", file).unwrap();
            let found: Vec<_> = manifest.paths(&path).map(|(_, path)| path).collect();
            assert_eq!(found, [directory.path().join(file)]);
        }
        for file in ["", "..", "../a", "/a", "a/../b", "a//b", "./a", "a/", "a\0b"] {
            assert_eq!(
                read("vm", file).unwrap_err().kind(),
                ErrorKind::ImageBad,
                "{file:?}"
            );
        }
        for volume in ["", "..", "a/b", "/a"] {
            assert_eq!(
                read(volume, "a").unwrap_err().kind(),
                ErrorKind::ImageBad,
                "{volume:?}"
            );
        }
    }
}
