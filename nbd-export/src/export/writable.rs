//! A file or block device as a plain read-write export: no frozen images, no copies, no promises beyond NBD's own.

use volmap::map::{Content, Extent};
use volmap::range::ByteRange;
use volmap::storage::{LiveVolume, Zeroing};

use super::limits::{AT_ONCE_MAX, CACHE_MAX, DESCRIPTORS_MAX, HOLE_CHUNK_MIN, ZERO_STEP};
use super::live::{allocation, allocation_only, one_piece, steps};
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, ReadShape};
use super::pieces::Pieces;
use crate::proto::BlockSizes;

/// A live volume.
///
/// Its block status is that of the moment of the request; a client that writes at the same time knows what it does.
pub struct WritableExport {
    volume: LiveVolume,
    contexts: Vec<Context>,
}

impl WritableExport {
    /// Serves `volume`.
    pub fn new(volume: LiveVolume) -> Self {
        Self {
            volume,
            contexts: allocation_only(),
        }
    }

    /// What is zeroes and worth a chunk of its own, and what is to be read.
    fn parts(&self, range: ByteRange, shape: ReadShape) -> Result<Vec<Extent>, ExportError> {
        let data = Extent {
            range,
            content: Content::Data,
        };
        if shape == ReadShape::Whole || range.len() < HOLE_CHUNK_MIN {
            return Ok(vec![data]);
        }
        let mut parts: Vec<Extent> = Vec::new();
        for mut extent in self.volume.extents(range, usize::MAX)? {
            if extent.range.len() < HOLE_CHUNK_MIN {
                extent.content = Content::Data;
            }
            match parts.last_mut() {
                Some(last) if last.content == extent.content => {
                    let joined = ByteRange::from_bounds(last.range.start(), extent.range.end());
                    last.range = joined.unwrap_or(last.range);
                }
                _ => parts.push(extent),
            }
        }
        Ok(parts)
    }
}

fn buffer_len(range: ByteRange) -> usize {
    usize::try_from(range.len()).expect("a request fits into memory")
}

impl Export for WritableExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.volume.size(),
            writable: true,
            fast_zero: true,
            // The page cache takes any byte.
            block: BlockSizes::default(),
            description: "writable: live, read-write".to_owned(),
        }
    }

    fn contexts(&self) -> Vec<Context> {
        self.contexts.clone()
    }

    fn read(&self, range: ByteRange, shape: ReadShape, out: &mut Pieces) -> Result<(), ExportError> {
        for part in self.parts(range, shape)? {
            match part.content {
                Content::Data => one_piece(part.range, out, |buf| {
                    self.volume.read_at(part.range.start(), buf)
                })?,
                Content::Hole | Content::Zero => out.zeroes(part.range),
            }
        }
        Ok(())
    }

    fn read_at_once(&self, range: ByteRange, _: ReadShape, out: &mut Pieces) -> Result<bool, ExportError> {
        if range.len() > AT_ONCE_MAX {
            return Ok(false);
        }
        let cached = self
            .volume
            .read_cached(range.start(), out.data(range.start(), buffer_len(range)))?;
        if !cached {
            out.clear();
        }
        Ok(cached)
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        one: bool,
    ) -> Result<BlockStatus, ExportError> {
        let limit = if one { 1 } else { DESCRIPTORS_MAX };
        Ok(allocation(&self.volume.extents(range, limit)?, selected))
    }

    fn cache(&self, range: ByteRange) -> Result<(), ExportError> {
        let end = range.end().min(range.start().saturating_add(CACHE_MAX));
        let range = ByteRange::from_bounds(range.start(), end).unwrap_or(range);
        Ok(self.volume.warm(range)?)
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(self.volume.flush()?)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ExportError> {
        Ok(self.volume.write_at(offset, data, fua)?)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ExportError> {
        for (step, last) in steps(range, ZERO_STEP) {
            self.volume.trim(step, fua && last)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing, fua: bool) -> Result<(), ExportError> {
        for (step, last) in steps(range, ZERO_STEP) {
            self.volume
                .write_zeroes(step, how, fua && last)
                .map_err(|error| ExportError::of_zeroing(error, how))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    use volmap::layers::Layers;

    use super::super::scripted::{MIB, assembled};
    use super::*;

    fn export(path: &Path) -> WritableExport {
        let layers = Layers::new(Vec::new()).unwrap();
        WritableExport::new(LiveVolume::open(path, &layers).unwrap())
    }

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    fn status(export: &WritableExport, range: ByteRange) -> Vec<(u64, u64)> {
        let answer = export.block_status(range, &[ContextIndex(0)], false).unwrap();
        answer[0]
            .descriptors
            .iter()
            .map(|d| (d.length, d.status))
            .collect()
    }

    /// In a file system whose holes are certain: /dev/shm is tmpfs wherever there is one, and the source tree need not be in one.
    fn volume() -> (tempfile::TempDir, std::path::PathBuf) {
        let shm = Path::new("/dev/shm");
        let directory = if shm.is_dir() {
            tempfile::tempdir_in(shm).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let path = directory.path().join("volume");
        File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        (directory, path)
    }

    #[test]
    fn what_is_written_is_read_and_what_is_punched_is_a_hole() {
        let (_directory, path) = volume();
        let export = export(&path);
        let all = range(0, 8 * MIB);
        assert_eq!(status(&export, all), [(8 * MIB, 3)]);
        export.write(MIB, &vec![7; 1 << 20], true).unwrap();
        export.write(5 * MIB + 1, b"odd", false).unwrap();
        let map = status(&export, all);
        assert_eq!(map[0], (MIB, 3));
        assert_eq!(map[1], (MIB, 0));
        assert_eq!(map.iter().map(|(length, _)| length).sum::<u64>(), 8 * MIB);
        // In the middle of a hole, and of data.
        assert_eq!(status(&export, range(100, 10)), [(10, 3)]);
        assert_eq!(status(&export, range(MIB - 10, 30)), [(10, 3), (20, 0)]);
        let one = export.block_status(all, &[ContextIndex(0)], true).unwrap();
        assert_eq!(one[0].descriptors.len(), 1);

        let expected = fs::read(&path).unwrap();
        for shape in [ReadShape::Sparse, ReadShape::Whole] {
            assert!(assembled(&export, all, shape) == expected);
        }
        export
            .write_zeroes(
                range(MIB, MIB),
                Zeroing {
                    may_punch: true,
                    fast: true,
                },
                true,
            )
            .unwrap();
        assert_eq!(status(&export, range(0, 4 * MIB)), [(4 * MIB, 3)]);
        assert!(assembled(&export, range(MIB, MIB), ReadShape::Whole) == vec![0; 1 << 20]);
    }

    #[test]
    fn zeroes_without_a_hole_keep_their_blocks() {
        use std::os::unix::fs::MetadataExt;

        let (_directory, path) = volume();
        let export = export(&path);
        export.write(0, &vec![7; 2 << 20], true).unwrap();
        let blocks = || path.metadata().unwrap().blocks();
        let before = blocks();
        let how = |may_punch, fast| Zeroing { may_punch, fast };
        export
            .write_zeroes(range(0, MIB), how(false, false), true)
            .unwrap();
        assert_eq!(blocks(), before);
        assert!(
            assembled(&export, range(0, 2 * MIB), ReadShape::Whole)[..1 << 20]
                .iter()
                .all(|b| *b == 0)
        );
        export
            .write_zeroes(range(0, MIB), how(true, false), true)
            .unwrap();
        assert!(blocks() < before);
        export.trim(range(0, 8 * MIB), true).unwrap();
        assert_eq!(blocks(), 0);
    }

    #[test]
    fn what_would_not_be_fast_is_refused_and_not_begun() {
        let (_directory, path) = volume();
        let export = export(&path);
        export.write(0, &vec![7; 1 << 20], true).unwrap();
        let how = Zeroing {
            may_punch: false,
            fast: true,
        };
        // tmpfs punches, and cannot zero in place. Whether it is so here is asked of the kernel, not of what is tested.
        let other = File::create(path.with_extension("other")).unwrap();
        other.set_len(MIB).unwrap();
        let zeroes_in_place = fallocate(&other, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 4096);
        let done = export.write_zeroes(range(0, MIB), how, true);
        let byte = match zeroes_in_place {
            Err(Errno::EOPNOTSUPP) => {
                assert!(matches!(done, Err(ExportError::NotFast)), "{done:?}");
                7
            }
            other => {
                other.unwrap();
                done.unwrap();
                0
            }
        };
        assert!(fs::read(&path).unwrap()[..1 << 20].iter().all(|b| *b == byte));
    }

    #[test]
    fn the_lines_between_steps_are_crossed() {
        let (_directory, path) = volume();
        let export = export(&path);
        export.write(0, &vec![7; 8 << 20], false).unwrap();
        let how = Zeroing {
            may_punch: true,
            fast: false,
        };
        // Neither end on a block.
        export.write_zeroes(range(1, 8 * MIB - 2), how, true).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes[0], bytes[bytes.len() - 1]), (7, 7));
        assert!(bytes[1..bytes.len() - 1].iter().all(|b| *b == 0));
    }
}
