//! The trait of frozen images and the words they describe themselves with.

use std::any::Any;
use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use crate::frozen::changed::{ChangedMap, NoLineage};
use crate::frozen::free_space::{FreeSpace, NoFreeSpace};
use crate::generation::Generation;
use crate::map::{Content, Extent};
use crate::range::ByteRange;
use crate::store::{Place, StoreGraph};

/// How stable the mapping of a frozen image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stability {
    /// Locations stay while the frozen image exists.
    Pinned,
    /// Locations may move; each move raises the generation first.
    Moves,
    /// No locations: everything is read over NBD.
    Opaque,
}

impl Stability {
    /// This, where any place in `graph` is on a disk.
    pub(super) fn on(self, graph: &StoreGraph) -> Self {
        if graph.reaches_disk() { self } else { Self::Opaque }
    }
}

/// What the bytes of a frozen image are good for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Strength {
    /// As if power had failed at the instant of the freeze.
    CrashConsistent,
    /// The file system on it was frozen for it: it had written out all that it held, and nothing of it was half done.
    FileSystem,
    /// No writer was there at the freeze, so nothing was half done in the kernel.
    Quiesced,
    /// The application had brought its data into order for it.
    Application,
}

/// Who vouches that nobody else changes the stores of a frozen image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attestation {
    /// A witness that the kernel keeps: lease, immutable flag.
    Witnessed,
    /// The operator's word; nothing would notice a change from outside.
    Unattested,
}

/// What a frozen image says of itself, in its export and in the header of a backup image.
#[derive(Clone, Debug)]
pub struct Description {
    /// Drawn at the freeze, never reused.
    pub uuid: Uuid,
    /// The provider: `reflink`, `quiesce`, `cow`, `lvm-snapshot`, `lvm-thin`, `static`.
    pub method: &'static str,
    /// What the bytes are good for.
    pub strength: Strength,
    /// How stable the mapping is.
    pub stability: Stability,
    /// Who vouches for it.
    pub attestation: Attestation,
    /// The instant of the freeze.
    pub frozen_at: SystemTime,
}

/// An answer of [`FrozenImage::status`]: all of it from one state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The stores that the places lie in.
    pub graph: Arc<StoreGraph>,
    /// In order and without gaps from the start of the range on.
    pub extents: Vec<StatusExtent>,
}

/// A piece of a [`Status`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusExtent {
    /// The bytes of the volume.
    pub range: ByteRange,
    /// What they hold.
    pub content: Content,
    /// The generation of this mapping.
    pub generation: Generation,
    /// Where data lies in the uppermost store; `None` for zeroes, and where there is no location to give.
    pub place: Option<Place>,
}

impl StatusExtent {
    /// Joins neighbours that continue each other in content, generation and place; stops before extent `limit + 1`.
    pub(crate) fn join(extents: impl Iterator<Item = Self>, limit: usize) -> Vec<Self> {
        let mut joined: Vec<Self> = Vec::new();
        for next in extents {
            if let Some(last) = joined.last_mut()
                && let Some(both) = last.continued(&next)
            {
                last.range = both;
            } else if joined.len() == limit {
                break;
            } else {
                joined.push(next);
            }
        }
        joined
    }

    fn continued(&self, next: &Self) -> Option<ByteRange> {
        let place = match (self.place, next.place) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.store == b.store && a.offset.checked_add(self.range.len()) == Some(b.offset)
            }
            _ => false,
        };
        (place && self.content == next.content && self.generation == next.generation)
            .then(|| ByteRange::from_bounds(self.range.start(), next.range.end()))
            .flatten()
    }
}

impl From<Extent> for StatusExtent {
    /// Content without a location.
    fn from(Extent { range, content }: Extent) -> Self {
        Self {
            range,
            content,
            generation: Generation::NEVER_DIRECT,
            place: None,
        }
    }
}

/// How full the area is that keeps old data for a frozen image, and perhaps for others beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyAreaUse {
    /// Bytes that hold old data.
    pub used: u64,
    /// Bytes that can hold old data.
    pub size: u64,
    /// Bytes of old data that writers can add at most, until there is another freeze.
    pub growth: u64,
}

/// Why a frozen image gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum FrozenError {
    /// The content is lost, for good (law H6).
    #[error("the frozen image is gone: {0}")]
    Gone(String),
    /// The store below failed; the frozen image still stands.
    #[error("reading the frozen image failed: {0}")]
    Io(#[from] std::io::Error),
}

/// A point-in-time view of a volume.
pub trait FrozenImage: Any + Send + Sync {
    /// What it says of itself.
    fn description(&self) -> &Description;

    /// Size in bytes.
    fn size(&self) -> u64;

    /// The stores that its bytes lie in now, as far as is known; others, once they were moved below it. Places of an answer lie in
    /// the graph that came with it. Waits for no device: it is asked where waiting would hold up others.
    fn graph(&self) -> Arc<StoreGraph>;

    /// The content, generation and places of `range`, in order and without gaps from its start: all of it, or
    /// the first `limit` (at least 1) extents of it. `range` lies within the size.
    ///
    /// # Errors
    /// [`FrozenError::Gone`].
    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError>;

    /// What `range` held at the freeze, in order and without gaps from its start: all of it, or the first `limit` (at least 1)
    /// extents of it. Cheaper than [`status`](Self::status) where no location is wanted: content does not move. Whether the
    /// image still stands may not be asked here: [`stands`](Self::stands) is called before the answer is given out.
    ///
    /// # Errors
    /// [`FrozenError::Gone`].
    fn content(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, FrozenError> {
        let extents = self.status(range, limit)?.extents.into_iter();
        Ok(extents
            .map(|StatusExtent { range, content, .. }| Extent { range, content })
            .collect())
    }

    /// Whether [`status`](Self::status) and [`content`](Self::content) never wait for a device or a lock that is held
    /// across a wait.
    fn answers_at_once(&self) -> bool {
        false
    }

    /// Whether the content is still the frozen one: asked after the bytes were copied, and before they are given out (laws H5 and H6).
    ///
    /// # Errors
    /// [`FrozenError::Gone`].
    fn stands(&self) -> Result<(), FrozenError>;

    /// As [`read_at`](Self::read_at), if that needs no wait for a device; `false` and nothing of use in `buf` if it would. As with
    /// [`content`](Self::content), the bytes count only if the image [`stands`](Self::stands) afterwards.
    ///
    /// # Errors
    /// [`FrozenError`].
    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool, FrozenError> {
        let _ = (offset, buf);
        Ok(false)
    }

    /// A file that holds the bytes of `range` at the same offsets, in the page cache at this moment, and that nobody will ever
    /// write again, not after a thaw either: such bytes may be sent by reference (law H5), if the image
    /// [`stands`](Self::stands) afterwards.
    ///
    /// # Errors
    /// [`FrozenError::Gone`].
    fn immutable_file(&self, range: ByteRange) -> Result<Option<Arc<File>>, FrozenError> {
        let _ = range;
        Ok(None)
    }

    /// Fills `buf` with the frozen bytes from `offset` on. The range lies within the size. On an error the buffer
    /// holds nothing of use.
    ///
    /// # Errors
    /// [`FrozenError`].
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError>;

    /// How full its copy area is, where it has one; when it is full the frozen image may end.
    fn copy_area(&self) -> Option<CopyAreaUse> {
        None
    }

    /// What nobody has of the file system that it holds, by the file system's own records in the frozen bytes. It may take long.
    ///
    /// # Errors
    /// [`NoFreeSpace`].
    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        Err(NoFreeSpace::NotTold(self.description().method))
    }

    /// Bytes that are zeroes here because nobody has them, whatever lies there; `None` where nothing was left out.
    fn left_out(&self) -> Option<u64> {
        None
    }

    /// What changed between the freeze of `older`, an earlier frozen image of the same volume, and the freeze of this one; what was written
    /// after this freeze may be in it, too. Two contents are compared that stay as they are, so the answer is true for good, also when
    /// either image is gone. It may take long.
    ///
    /// # Errors
    /// [`NoLineage`]: then everything counts as changed.
    fn changed_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        let _ = older;
        Err(NoLineage::NotTold(self.description().method))
    }

    /// From now on it is there for [`changed_since`](Self::changed_since) of later frozen images only, until it is thawed: what they have no
    /// use for is given back, and it need not answer anything else any more. `false`: no later one has a use for it, and it is to be thawed.
    fn keep_as_parent(&self) -> bool {
        self.can_be_parent()
    }

    /// Whether a later frozen image can be told what changed since this one, as far as is known now. Nothing is done. It may wait for a
    /// device.
    fn can_be_parent(&self) -> bool {
        false
    }

    /// Ends the frozen image and gives back what it holds. Every later call says [`FrozenError::Gone`].
    fn thaw(&self);
}
