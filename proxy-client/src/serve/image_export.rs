//! An image, or a chain of them, as an NBD export.

use std::ops::ControlFlow;
use std::sync::Arc;

use nbd_export::export::limits::{DESCRIPTORS_MAX, HOLE_CHUNK_MIN};
use nbd_export::export::{
    BASE_ALLOCATION, BlockStatus, Context, ContextIndex, ContextStatus, Export, ExportError, ExportInfo,
    Pieces, ReadShape,
};
use nbd_export::proto::{BlockSizes, Descriptor};
use volmap::map::Content;
use volmap::range::ByteRange;
use volmap::storage::Zeroing;

use super::overlay::Overlay;
use crate::chain::{Chain, Part};
use crate::error::Error;
use crate::image::Kind;

/// Bytes of a volume that one BLOCK_STATUS looks at: the index of 64 GiB of data is 40 MB of an image.
const STATUS_BYTES_MAX: u64 = 64 << 30;

/// NBD_STATE_HOLE and NBD_STATE_ZERO.
const HOLE: u64 = 1;
const ZERO: u64 = 2;

type Result<T> = std::result::Result<T, ExportError>;

/// A volume as its image has it, or as it was written over it.
pub(crate) struct ImageExport {
    chain: Arc<Chain>,
    overlay: Option<Overlay>,
    description: String,
}

impl ImageExport {
    /// Serves a chain whose root was computed, with an overlay for what is written to it; without one it cannot be written to.
    pub(crate) fn new(chain: Arc<Chain>, overlay: Option<Overlay>) -> Self {
        let (header, end) = (chain.header(), chain.end());
        let mut description = format!(
            "backup image: volume={} image={} root={}",
            header.volume, header.image, end.root
        );
        if !header.frozen.is_nil() {
            description.push_str(&format!(" frozen={}", header.frozen));
        }
        if overlay.is_some() {
            description.push_str(" overlay=yes");
        }
        Self {
            chain,
            overlay,
            description,
        }
    }

    /// What `range` holds, in order, until `each` has enough.
    fn walk(&self, range: ByteRange, each: &mut dyn FnMut(Part) -> ControlFlow<()>) -> Result<()> {
        let Some(overlay) = &self.overlay else {
            return self.chain.walk(range, each).map_err(bad);
        };
        let mut flow = ControlFlow::Continue(());
        let mut at = range.start();
        while flow.is_continue()
            && let Some(rest) = ByteRange::from_bounds(at, range.end())
        {
            let (run, is_here) = overlay.first_run(rest);
            at = run.end();
            if !is_here {
                let mut noting = |part| {
                    flow = each(part);
                    flow
                };
                self.chain.walk(run, &mut noting).map_err(bad)?;
                continue;
            }
            let extents = overlay.extents(run, DESCRIPTORS_MAX)?;
            at = extents.last().map_or(at, |last| last.range.end());
            for extent in extents {
                let kind = match extent.content {
                    Content::Data => Kind::Data,
                    Content::Zero => Kind::Zero,
                    Content::Hole => Kind::Hole,
                };
                flow = each(Part {
                    range: extent.range,
                    kind,
                });
                if flow.is_break() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What is zeroes and worth a chunk of its own (`true`), and what is to be read.
    fn parts(&self, range: ByteRange, shape: ReadShape) -> Result<Vec<(ByteRange, bool)>> {
        let mut parts: Vec<(ByteRange, bool)> = Vec::new();
        let mut unreadable = None;
        self.walk(range, &mut |part| {
            if part.kind == Kind::Unreadable {
                unreadable = Some(part.range);
                return ControlFlow::Break(());
            }
            let zeroes = part.kind != Kind::Data && part.range.len() >= HOLE_CHUNK_MIN;
            let zeroes = zeroes && shape == ReadShape::Sparse;
            match parts.last_mut() {
                Some((last, kind)) if *kind == zeroes => {
                    *last = ByteRange::from_bounds(last.start(), part.range.end()).unwrap_or(*last);
                }
                _ => parts.push((part.range, zeroes)),
            }
            ControlFlow::Continue(())
        })?;
        match unreadable {
            Some(range) => Err(gap(range)),
            None => Ok(parts),
        }
    }

    fn fill(&self, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        let Some(overlay) = &self.overlay else {
            return self.chain.fill(range, bytes).map_err(bad);
        };
        let mut at = range.start();
        while let Some(rest) = ByteRange::from_bounds(at, range.end()) {
            let (run, is_here) = overlay.first_run(rest);
            let index = |at: u64| usize::try_from(at - range.start()).expect("a request fits the memory");
            let part = &mut bytes[index(run.start())..index(run.end())];
            match is_here {
                true => overlay.read(run.start(), part)?,
                false => self.chain.fill(run, part).map_err(bad)?,
            }
            at = run.end();
        }
        Ok(())
    }

    /// Bytes of the image alone, for units of the overlay that are only begun.
    fn below(&self, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        match self.chain.unreadable_in(range).map_err(bad)?.first() {
            Some(range) => Err(gap(*range)),
            None => self.chain.fill(range, bytes).map_err(bad),
        }
    }

    fn overlay(&self) -> Result<&Overlay> {
        self.overlay.as_ref().ok_or(ExportError::ReadOnly)
    }
}

/// An image that is not what was written is told of loudly: each read that meets it fails.
fn bad(error: Error) -> ExportError {
    tracing::error!(%error, "a read of an image that is served failed");
    // Whatever it was, a client must not take it for anything but an error of its disk.
    ExportError::Io(std::io::Error::other(error.to_string()))
}

fn gap(range: ByteRange) -> ExportError {
    ExportError::Io(std::io::Error::other(format!(
        "the bytes from {} to {} could not be read when the image was made",
        range.start(),
        range.end()
    )))
}

impl Export for ImageExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.chain.header().size,
            writable: self.overlay.is_some(),
            // What was not written yet has to be read before less than a unit of it is zeroed.
            fast_zero: false,
            block: BlockSizes::default(),
            description: self.description.clone(),
        }
    }

    fn contexts(&self) -> Vec<Context> {
        vec![Context {
            name: BASE_ALLOCATION.to_owned(),
            extended: false,
        }]
    }

    fn read(&self, range: ByteRange, shape: ReadShape, out: &mut Pieces) -> Result<()> {
        for (part, zeroes) in self.parts(range, shape)? {
            if zeroes {
                out.zeroes(part);
            } else {
                let length = usize::try_from(part.len()).expect("a request fits the memory");
                self.fill(part, out.data(part.start(), length))?;
            }
        }
        Ok(())
    }

    fn block_status(&self, range: ByteRange, selected: &[ContextIndex], one: bool) -> Result<BlockStatus> {
        let limit = if one { 1 } else { DESCRIPTORS_MAX };
        let looked_at = range.end().min(range.start().saturating_add(STATUS_BYTES_MAX));
        let range = ByteRange::from_bounds(range.start(), looked_at).unwrap_or(range);
        let mut descriptors: Vec<Descriptor> = Vec::new();
        self.walk(range, &mut |part| {
            let status = match part.kind {
                // What nobody could read is data to whoever asks for it, and then an error.
                Kind::Data | Kind::Unreadable | Kind::Same => 0,
                Kind::Zero => ZERO,
                Kind::Hole => HOLE | ZERO,
            };
            let length = part.range.len();
            let is_full = descriptors.len() == limit;
            match descriptors.last_mut() {
                Some(last) if last.status == status => last.length += length,
                _ if is_full => return ControlFlow::Break(()),
                _ => descriptors.push(Descriptor { length, status }),
            }
            ControlFlow::Continue(())
        })?;
        let status = |context: &ContextIndex| ContextStatus {
            context: *context,
            descriptors: descriptors.clone(),
        };
        Ok(selected.iter().map(status).collect())
    }

    /// What was read stays in the cache by itself.
    fn cache(&self, _: ByteRange) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        match &self.overlay {
            Some(overlay) => Ok(overlay.flush()?),
            None => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        let overlay = self.overlay()?;
        if let Some(range) = ByteRange::new(offset, data.len() as u64) {
            overlay.write(range, data, &|range, bytes| self.below(range, bytes))?;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        let overlay = self.overlay()?;
        overlay.trim(range, &|range, bytes| self.below(range, bytes))?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing, fua: bool) -> Result<()> {
        let overlay = self.overlay()?;
        overlay.write_zeroes(range, how, &|range, bytes| self.below(range, bytes))?;
        if fua { self.flush() } else { Ok(()) }
    }
}
