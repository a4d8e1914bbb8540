//! The tag: a small file or logical volume of the host on a LUN, where a proxy leaves a nonce and must find it again.
//!
//! That is the only test that tells a disk from its clone: identity and contents are copied with a clone, a nonce that
//! was written a moment ago is not. The first [`TAG_BLOCK`] bytes make the tag recognisable and belong to the host; a proxy
//! may write the bytes from [`TAG_BLOCK`] to the end, all of them, any time. They are zeroed each time the tag is opened.
//!
//! Invariants: every block is written once before a location is given, so that a nonce is overwritten in place; a
//! location is given only while the write lease holds (docs/law.md, "Witnesses").

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::frozen::StatusExtent;
use crate::generation::{Generation, GenerationClock};
use crate::layers::{LayerWitness, Layers};
use crate::limits::{TAG_BLOCK, TAG_DEFAULT, TAG_MAX};
use crate::map::{Content, ContentMap};
use crate::range::ByteRange;
use crate::storage::{Backing, Caching, Guard, Standing, StorageError, StorageFile, at, settle_all};
use crate::store::{Place, StoreGraph, StoreId};

/// The first bytes of a tag. A proxy writes to nothing that does not begin with them.
pub const MAGIC: &[u8; 32] = b"x-volmap tag, version 1\n\0\0\0\0\0\0\0\0";

/// Why a tag was not opened.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// A tag of this size is none.
    #[error(
        "{size} bytes are no size of a tag: it takes {} to {TAG_MAX}, in blocks of {TAG_BLOCK}; is it a volume, given by mistake?",
        2 * TAG_BLOCK
    )]
    Size {
        /// Bytes of what was given.
        size: u64,
    },
    /// The file or device is of no use.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// An open tag.
pub struct Tag {
    storage: StorageFile,
    graph: StoreGraph,
    top: StoreId,
    content: ContentMap,
    layers: LayerWitness,
    generation: Generation,
    mapping_lost: OnceLock<String>,
}

impl Tag {
    /// Opens the tag at `path`, or makes one of [`TAG_DEFAULT`] bytes where there is nothing or an empty file. A file or device
    /// of zeroes becomes a tag too.
    ///
    /// # Errors
    /// [`TagError`]; never touches what holds anything else than a tag.
    pub fn open(path: &Path, layers: &Layers, clock: &GenerationClock) -> Result<Self, TagError> {
        let mut made = false;
        let mut storage = match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                made = true;
                StorageFile::create(path, Caching::PageCache, layers)?
            }
            _ => StorageFile::open(path, Caching::PageCache, layers)?,
        };
        let prepared = prepare(&mut storage);
        if made && prepared.is_err() {
            // We made it a moment ago. That it cannot be removed is not the error to tell of.
            let _ = std::fs::remove_file(path);
        }
        prepared?;
        let mut graph = StoreGraph::new();
        let mapping = layers
            .map(&mut graph, &storage.file, path)
            .map_err(at(path, "finding out where it lies"))?;
        let located = !matches!(storage.guard, Guard::Nobody(_));
        Ok(Self {
            storage,
            graph,
            top: mapping.top,
            content: mapping.content,
            layers: mapping.witness,
            generation: if located {
                clock.next()
            } else {
                Generation::NEVER_DIRECT
            },
            mapping_lost: OnceLock::new(),
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.storage.size()
    }

    /// The stores that the tag lies in.
    pub fn graph(&self) -> &StoreGraph {
        &self.graph
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput`: not within the tag. Else what the storage says.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.within(offset, buf.len(), 0)?;
        self.storage.read_at(offset, buf)
    }

    /// Writes all of `data` at `offset`; it is on the device at the return, as with FUA.
    ///
    /// # Errors
    /// `InvalidInput`: not within the tag. `PermissionDenied`: the first block is the host's. Else what the storage says.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.within(offset, data.len(), TAG_BLOCK)?;
        self.storage.write_through_at(offset, data)
    }

    fn within(&self, offset: u64, len: usize, first: u64) -> io::Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size() && offset >= first => Ok(()),
            Some(end) if end <= self.size() => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the first block of a tag is the host's",
            )),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Where `range`, which lies within the tag, lies now: in order, without gaps, at most `limit` extents. Once the witness
    /// was lost there is no location any more, until the tag is opened anew.
    pub fn status(&self, range: ByteRange, limit: usize) -> Vec<StatusExtent> {
        let located = self.generation.is_direct() && self.is_witnessed();
        let extents = self.content.within(range).map(|extent| StatusExtent {
            range: extent.range,
            content: extent.content,
            generation: if located {
                self.generation
            } else {
                Generation::NEVER_DIRECT
            },
            place: (located && extent.content == Content::Data).then_some(Place {
                store: self.top,
                offset: extent.range.start(),
            }),
        });
        extents.take(limit).collect()
    }

    fn is_witnessed(&self) -> bool {
        let lost = match self.storage.standing() {
            Standing::Good => self.layers.check().err(),
            Standing::MappingLost(reason) | Standing::ContentLost(reason) => Some(reason),
        };
        if let Some(reason) = lost
            && self.mapping_lost.set(reason.clone()).is_ok()
        {
            tracing::warn!(tag = %self.storage.path.display(), reason, "the tag has no location any more");
        }
        self.mapping_lost.get().is_none()
    }
}

/// Makes sure that it is a tag or becomes one, and writes every block of it.
fn prepare(storage: &mut StorageFile) -> Result<(), TagError> {
    let path = storage.path.clone();
    let size = match storage.size() {
        0 => TAG_DEFAULT,
        size if size.is_multiple_of(TAG_BLOCK) && (2 * TAG_BLOCK..=TAG_MAX).contains(&size) => size,
        size => return Err(TagError::Size { size }),
    };
    let mut bytes = vec![0; usize::try_from(storage.size()).expect("at most TAG_MAX")];
    storage
        .read_at(0, &mut bytes)
        .map_err(at(&path, "looking for a tag"))?;
    if !bytes.starts_with(MAGIC) && bytes.iter().any(|&byte| byte != 0) {
        let wanted = "tag";
        return Err(StorageError::Foreign { path, wanted }.into());
    }
    settle_all(storage, size, TAG_BLOCK)?;
    // Old nonces go: a proxy shall find what it wrote itself.
    (storage.write_zeroes_at(TAG_BLOCK, size - TAG_BLOCK))
        .and_then(|()| storage.write_at(0, MAGIC))
        .and_then(|()| storage.sync_data())
        .map_err(at(&path, "writing the tag"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    fn site() -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tag");
        (dir, path)
    }

    fn open(path: &Path) -> Result<Tag, TagError> {
        let layers = Layers::new(Vec::new()).unwrap();
        Tag::open(path, &layers, &GenerationClock::start().unwrap())
    }

    fn whole(tag: &Tag) -> Vec<StatusExtent> {
        tag.status(ByteRange::new(0, tag.size()).unwrap(), usize::MAX)
    }

    #[test]
    fn a_nonce_is_written_in_place_and_gone_at_the_next_start() {
        let (_dir, path) = site();
        let tag = open(&path).unwrap();
        assert_eq!(tag.size(), TAG_DEFAULT);
        let before = whole(&tag);
        assert!(
            before
                .iter()
                .all(|e| e.generation.is_direct() && e.place.is_some())
        );
        tag.write_at(TAG_BLOCK + 7, b"nonce").unwrap();
        assert_eq!(whole(&tag), before);
        let mut read = [0; 5];
        tag.read_at(TAG_BLOCK + 7, &mut read).unwrap();
        assert_eq!(read, *b"nonce");
        drop(tag);

        let again = open(&path).unwrap();
        again.read_at(TAG_BLOCK + 7, &mut read).unwrap();
        assert_eq!(read, [0; 5]);
        assert_ne!(whole(&again)[0].generation, before[0].generation);
    }

    #[test]
    fn a_proxy_writes_behind_the_first_block_and_nowhere_else() {
        let (_dir, path) = site();
        let tag = open(&path).unwrap();
        let kind = |result: io::Result<()>| result.map_err(|e| e.kind());
        assert_eq!(kind(tag.write_at(TAG_BLOCK, &[1])), Ok(()));
        assert_eq!(kind(tag.write_at(TAG_DEFAULT - 1, &[1])), Ok(()));
        assert_eq!(
            kind(tag.write_at(TAG_BLOCK - 1, &[1, 1])),
            Err(io::ErrorKind::PermissionDenied)
        );
        assert_eq!(
            kind(tag.write_at(TAG_DEFAULT - 1, &[1, 1])),
            Err(io::ErrorKind::InvalidInput)
        );
        assert_eq!(
            kind(tag.write_at(u64::MAX, &[1, 1])),
            Err(io::ErrorKind::InvalidInput)
        );
        assert_eq!(
            kind(tag.read_at(TAG_DEFAULT, &mut [1])),
            Err(io::ErrorKind::InvalidInput)
        );
    }

    #[test]
    fn a_tag_that_somebody_opens_has_no_location_any_more() {
        let (_dir, path) = site();
        let tag = open(&path).unwrap();
        assert!(whole(&tag)[0].generation.is_direct());
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path);
        assert!(opened.is_err());
        assert!(
            whole(&tag)
                .iter()
                .all(|e| !e.generation.is_direct() && e.place.is_none())
        );
        tag.write_at(TAG_BLOCK, b"nonce").unwrap();
    }

    #[test]
    fn nobodys_data_becomes_a_tag() {
        let (_dir, path) = site();
        for size in [
            1,
            TAG_BLOCK,
            2 * TAG_BLOCK - 1,
            2 * TAG_BLOCK + 1,
            TAG_MAX + TAG_BLOCK,
        ] {
            File::create(&path).unwrap().set_len(size).unwrap();
            assert!(
                matches!(open(&path).map(drop), Err(TagError::Size { .. })),
                "{size}"
            );
        }
        for size in [2 * TAG_BLOCK, TAG_MAX] {
            File::create(&path).unwrap().set_len(size).unwrap();
            assert_eq!(open(&path).unwrap().size(), size);
        }
        let mut theirs = vec![0; 16 * 4096];
        theirs[65_000] = 1;
        fs::write(&path, &theirs).unwrap();
        let refused = open(&path).map(drop);
        assert!(matches!(
            refused,
            Err(TagError::Storage(StorageError::Foreign { .. }))
        ));
        assert_eq!(fs::read(&path).unwrap(), theirs);
    }
}
