//! The origin of a copy-before-write volume as a read-write export.

use std::sync::Arc;

use volmap::cow::Origin;
use volmap::range::ByteRange;
use volmap::storage::Zeroing;

use super::limits::WIPE_STEP;
use super::live::{all_data, allocation_only, one_piece, steps};
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, ReadShape};
use super::pieces::Pieces;
use crate::proto::BlockSizes;

/// The live volume. Every write to it keeps the old data first, while a frozen image of it lives.
pub struct OriginExport {
    origin: Arc<Origin>,
    contexts: Vec<Context>,
}

impl OriginExport {
    /// Serves `origin`.
    pub fn new(origin: Arc<Origin>) -> Self {
        Self {
            origin,
            contexts: allocation_only(),
        }
    }
}

impl Export for OriginExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.origin.size(),
            writable: true,
            fast_zero: true,
            block: BlockSizes::default(),
            description: "origin: live, read-write".to_owned(),
        }
    }

    fn contexts(&self) -> Vec<Context> {
        self.contexts.clone()
    }

    fn read(&self, range: ByteRange, _: ReadShape, out: &mut Pieces) -> Result<(), ExportError> {
        Ok(one_piece(range, out, |buf| {
            self.origin.read_at(range.start(), buf)
        })?)
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        _: bool,
    ) -> Result<BlockStatus, ExportError> {
        Ok(all_data(range, selected))
    }

    /// Nothing to do: the page cache of a live volume knows better.
    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(self.origin.flush()?)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ExportError> {
        Ok(self.origin.write_at(offset, data, fua)?)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ExportError> {
        for (step, last) in steps(range, WIPE_STEP) {
            self.origin.trim(step.start(), step.len(), fua && last)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing, fua: bool) -> Result<(), ExportError> {
        for (step, last) in steps(range, WIPE_STEP) {
            let (start, len, fua) = (step.start(), step.len(), fua && last);
            if how.fast {
                self.origin.write_zeroes_fast(start, len, !how.may_punch, fua)
            } else {
                self.origin.write_zeroes(start, len, !how.may_punch, fua)
            }
            .map_err(|error| ExportError::of_zeroing(error, how))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use volmap::cow::{CopyAreaSpec, OnFull};
    use volmap::generation::GenerationClock;
    use volmap::layers::Layers;

    use super::super::FrozenExport;
    use super::super::scripted::assembled;
    use super::*;

    const SIZE: usize = 1 << 20;

    fn bytes(export: &dyn Export, start: u64, len: u64) -> Vec<u8> {
        let range = ByteRange::new(start, len).unwrap();
        assembled(export, range, ReadShape::Whole)
    }

    #[test]
    fn a_wipe_lets_a_freeze_in_between_its_steps() {
        let range = |start, end| ByteRange::from_bounds(start, end).unwrap();
        let cut = |start, end| steps(range(start, end), WIPE_STEP).collect::<Vec<_>>();
        for end in [1, WIPE_STEP - 1, WIPE_STEP] {
            assert_eq!(cut(0, end), [(range(0, end), true)]);
        }
        assert_eq!(
            cut(5, 2 * WIPE_STEP + 1),
            [
                (range(5, WIPE_STEP), false),
                (range(WIPE_STEP, 2 * WIPE_STEP), false),
                (range(2 * WIPE_STEP, 2 * WIPE_STEP + 1), true)
            ]
        );
        assert_eq!(
            cut(u64::MAX - 1, u64::MAX),
            [(range(u64::MAX - 1, u64::MAX), true)]
        );
    }

    #[test]
    fn every_kind_of_change_leaves_the_frozen_export_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin");
        std::fs::write(&path, vec![1; SIZE]).unwrap();
        let area = CopyAreaSpec {
            path: dir.path().join("area"),
            size: Some(8 << 20),
            on_full: OnFull::Break,
        };
        let layers = Arc::new(Layers::new(Vec::new()).unwrap());
        let clock = Arc::new(GenerationClock::start().unwrap());
        let origin = Origin::open(&path, &area, layers, clock).unwrap();
        let live = OriginExport::new(Arc::clone(&origin));
        let image = origin.freeze().unwrap();
        let frozen = FrozenExport::new(Arc::clone(&image));

        live.write(0, &[2; 4096], false).unwrap();
        live.trim(ByteRange::new(8192, 4096).unwrap(), false).unwrap();
        live.write_zeroes(
            ByteRange::new(16_384, 4096).unwrap(),
            Zeroing {
                may_punch: false,
                fast: false,
            },
            true,
        )
        .unwrap();
        live.flush().unwrap();

        assert_eq!(bytes(&live, 0, 4096), [2; 4096]);
        assert_eq!(bytes(&live, 16_384, 4096), [0; 4096]);
        assert_eq!(bytes(&frozen, 0, SIZE as u64), vec![1; SIZE]);
        let all = ByteRange::new(0, SIZE as u64).unwrap();
        let status = live.block_status(all, &[ContextIndex(0)], false).unwrap();
        assert_eq!(status, all_data(all, &[ContextIndex(0)]));

        // The frozen image tells a proxy how full the copy area is, the last time it asks.
        let told = frozen.info().description;
        assert!(
            told.contains(" copy-area=65536/8323072 copy-area-growth=983040"),
            "{told}"
        );

        // Zeroes are fast where nothing has to be kept and blocks may go.
        let unit = ByteRange::new(32_768, 4096).unwrap();
        let fast = |may_punch| {
            live.write_zeroes(
                unit,
                Zeroing {
                    may_punch,
                    fast: true,
                },
                true,
            )
        };
        assert!(matches!(fast(true), Err(ExportError::NotFast)));
        assert_eq!(bytes(&live, 32_768, 4096), [1; 4096], "nothing was changed");
        image.thaw();
        assert!(matches!(fast(false), Err(ExportError::NotFast)));
        fast(true).unwrap();
        assert_eq!(bytes(&live, 32_768, 4096), [0; 4096]);
    }
}
