//! A bounded file in which batches wait that were read and confirmed, and whose turn to be written has not come.
//!
//! Frames lie in volume order, so a slow output holds up the reads, and with them the frozen image: its copy area fills meanwhile. With a
//! spool the frozen image is needed for no longer than it takes to read it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::statvfs::statvfs;
use tokio::sync::watch;

use super::limits::{SPOOL_BLOCK, SPOOL_MEMORY};
use crate::error::{Error, Result};
use crate::image::EncodedPiece;

/// The file, which has no name: nothing is left of it, however the job ends.
#[derive(Debug)]
pub struct Spool {
    file: File,
    directory: PathBuf,
    /// Bytes that it takes at most.
    size: u64,
    state: Mutex<State>,
    freed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the next bytes go: nothing is written twice, but what was taken out is given back to the file system.
    end: u64,
    /// Bytes in it.
    used: u64,
    /// Bytes of memory that what waits in it takes all the same.
    in_memory: u64,
    /// It could not be written; what is in it is good.
    has_failed: bool,
}

/// The frames of a batch, in the file.
#[derive(Debug)]
pub(super) struct Spooled {
    start: u64,
    /// Of each frame.
    lengths: Vec<usize>,
    in_memory: u64,
}

impl Spooled {
    fn len(&self) -> u64 {
        self.lengths.iter().map(|length| *length as u64).sum()
    }

    /// Whole blocks: parts of one cannot be given back.
    fn room(&self) -> u64 {
        self.len().next_multiple_of(SPOOL_BLOCK)
    }
}

impl Spool {
    /// In `directory`, of `size` bytes, or of half of what is free there now.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Io`]: the file system has no files without a name (`O_TMPFILE`), or cannot give back parts of a file
    /// (`FALLOC_FL_PUNCH_HOLE`), or what the operating system says.
    pub fn open(directory: &Path, size: Option<u64>) -> Result<Self> {
        let open = || -> io::Result<(File, u64)> {
            let file = File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .mode(0o600)
                .open(directory)?;
            punch(&file, 0, SPOOL_BLOCK)?;
            let free = || -> io::Result<u64> {
                let system = statvfs(directory)?;
                Ok(system.blocks_available().saturating_mul(system.fragment_size()))
            };
            let size = size.map_or_else(|| free().map(|bytes| bytes / 2), Ok)?;
            Ok((file, size))
        };
        let (file, size) = open().map_err(|error| Error::io("opening the spool", directory, error))?;
        Ok(Self {
            file,
            directory: directory.to_owned(),
            size,
            state: Mutex::default(),
            freed: watch::Sender::new(()),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever something was taken out.
    pub(super) fn freed(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
    }

    /// Bytes in it.
    pub(super) fn used(&self) -> u64 {
        self.state().used
    }

    /// Puts the compressed bytes of a batch into the file; `None` where they stay in memory, for want of room.
    pub(super) fn put(&self, pieces: &mut [EncodedPiece]) -> Option<Spooled> {
        let mut spooled = Spooled {
            start: 0,
            lengths: pieces
                .iter_mut()
                .flat_map(EncodedPiece::bytes_mut)
                .map(|bytes| bytes.len())
                .collect(),
            in_memory: pieces.iter().map(EncodedPiece::len_beside).sum(),
        };
        {
            let mut state = self.state();
            let (used, in_memory) = (state.used + spooled.room(), state.in_memory + spooled.in_memory);
            if state.has_failed || used > self.size || in_memory > SPOOL_MEMORY {
                return None;
            }
            spooled.start = state.end;
            (state.used, state.in_memory) = (used, in_memory);
            state.end += spooled.room();
        }
        let mut at = spooled.start;
        for bytes in pieces.iter_mut().flat_map(EncodedPiece::bytes_mut) {
            if let Err(error) = self.file.write_all_at(bytes, at) {
                let directory = self.directory.display();
                tracing::warn!(%directory, %error, "the spool takes no more; the backup goes on at the pace of its output");
                self.state().has_failed = true;
                self.leave(&spooled);
                return None;
            }
            at += bytes.len() as u64;
        }
        for bytes in pieces.iter_mut().flat_map(EncodedPiece::bytes_mut) {
            *bytes = Bytes::new();
        }
        Some(spooled)
    }

    /// Begins to give them back.
    pub(super) fn take(&self, spooled: Spooled) -> Taking<'_> {
        Taking {
            spool: self,
            at: spooled.start,
            frames: 0,
            spooled,
        }
    }

    fn leave(&self, spooled: &Spooled) {
        // What is not given back now is at the end: the file has no name.
        if let Err(error) = punch(&self.file, spooled.start, spooled.room()) {
            tracing::debug!(%error, "the spool keeps what was taken out of it");
        }
        let mut state = self.state();
        state.used -= spooled.room();
        state.in_memory -= spooled.in_memory;
        drop(state);
        self.freed.send_replace(());
    }
}

/// A batch on its way back, piece by piece: it is in memory no sooner than it is needed. Dropped, it leaves its room to others.
pub(super) struct Taking<'a> {
    spool: &'a Spool,
    spooled: Spooled,
    /// Where the next frame is.
    at: u64,
    /// Frames that were given back.
    frames: usize,
}

impl Taking<'_> {
    /// Gives the next piece its bytes back.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Io`]: they could not be read, or are others than it was given.
    pub(super) fn fill(&mut self, piece: &mut EncodedPiece) -> Result<()> {
        let mut read = || {
            for bytes in piece.bytes_mut() {
                let mut frame = vec![0; self.spooled.lengths[self.frames]];
                self.spool.file.read_exact_at(&mut frame, self.at)?;
                self.at += frame.len() as u64;
                self.frames += 1;
                *bytes = frame.into();
            }
            if piece.is_whole() {
                Ok(())
            } else {
                let message = "it has other bytes than it was given";
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
        };
        read().map_err(|error| Error::io("reading the spool", &self.spool.directory, error))
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.spool.leave(&self.spooled);
    }
}

fn punch(file: &File, start: u64, len: u64) -> io::Result<()> {
    let offset = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, offset(start)?, offset(len)?)?)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::MetadataExt;

    use volmap::generation::Generation;
    use volmap::range::ByteRange;

    use super::*;
    use crate::image::{Content, DEFAULT_LEVEL, Kind, Receipt, Record, Transport, compress_piece};

    pub(in crate::pipeline) const MIB: u64 = 1 << 20;

    pub(in crate::pipeline) fn noise(megabytes: u64) -> Vec<EncodedPiece> {
        let random = crate::pipeline::Random::of_a_seed(megabytes);
        (0..megabytes)
            .map(|nth| {
                let bytes: Vec<u8> = (0..MIB / 4)
                    .flat_map(|_| random.below(1 << 32).to_le_bytes()[..4].to_vec())
                    .collect();
                let range = ByteRange::new(nth * MIB, MIB).unwrap();
                let record = Record {
                    range,
                    kind: Kind::Data,
                    receipt: Receipt {
                        transport: Transport::Nbd,
                        ..Receipt::unread(Generation::NEVER_DIRECT)
                    },
                };
                compress_piece(range, Content::Bytes(&bytes), &[record], DEFAULT_LEVEL)
            })
            .collect()
    }

    pub(in crate::pipeline) fn take(
        spool: &Spool,
        spooled: Spooled,
        batch: &mut [EncodedPiece],
    ) -> Result<()> {
        let mut taking = spool.take(spooled);
        batch.iter_mut().try_for_each(|piece| taking.fill(piece))
    }

    fn spool(size: u64) -> Spool {
        Spool::open(Path::new(env!("CARGO_MANIFEST_DIR")), Some(size)).unwrap()
    }

    #[test]
    fn what_waits_comes_back_and_its_room_is_free_again() {
        let spool = spool(9 * MIB);
        let mut batches: Vec<_> = (0..3).map(|_| noise(4)).collect();
        let places: Vec<_> = batches.iter_mut().map(|batch| spool.put(batch)).collect();
        assert!(places[0].is_some() && places[1].is_some(), "{places:?}");
        assert!(places[2].is_none(), "there is room for two");
        assert!(
            batches[2].iter().all(EncodedPiece::is_whole),
            "it stays in memory"
        );
        assert!(!batches[0].iter().any(EncodedPiece::is_whole), "memory is free");
        spool.file.sync_all().unwrap();
        let full = spool.file.metadata().unwrap().blocks();
        for (batch, place) in batches.iter_mut().zip(places).take(2) {
            take(&spool, place.unwrap(), batch).unwrap();
            assert!(batch.iter().all(EncodedPiece::is_whole));
        }
        let state = spool.state();
        assert_eq!((state.used, state.in_memory), (0, 0));
        assert!(spool.file.metadata().unwrap().blocks() < full / 8);
    }

    #[test]
    fn other_bytes_than_it_was_given_are_noticed() {
        let spool = spool(9 * MIB);
        let mut batch = noise(2);
        let place = spool.put(&mut batch).unwrap();
        spool.file.write_all_at(&[77; 512], place.start + MIB).unwrap();
        let error = take(&spool, place, &mut batch).unwrap_err();
        assert!(error.to_string().contains("spool"), "{error}");
    }

    #[test]
    fn one_that_cannot_be_written_costs_only_its_room() {
        let read_only = Spool {
            file: File::open("/dev/null").unwrap(),
            ..spool(9 * MIB)
        };
        let mut batch = noise(1);
        assert!(read_only.put(&mut batch).is_none());
        assert!(batch.iter().all(EncodedPiece::is_whole));
        assert!(read_only.put(&mut batch).is_none(), "nor is it tried again");
        assert_eq!(read_only.used(), 0);
    }
}
