//! `verify`: reads a whole image and says whether it is what was written.

use std::path::Path;

use super::UnreadableRanges;
use crate::error::Result;
use crate::image::{End, Event, Header, Kind};
use crate::image_source::ImageSource;
use crate::interrupt::Interrupt;

/// What a good image holds.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Its header.
    pub header: Header,
    /// Its END: every count and the root in it were found to be true.
    pub end: End,
    /// What could not be read when it was made. The image is good, the volume in it has gaps:
    /// [`UnreadableRanges::error`] is what the command ends with.
    pub unreadable: UnreadableRanges,
}

/// Verifies an image; `-` is standard input. Everything is decompressed and hashed: frames, leaves, root, records,
/// counts, seek table, and that nothing follows. `progress` is told bytes of the volume done, and its size; `interrupt` ends it.
///
/// # Errors
/// [`crate::error::ErrorKind::ImageBad`]: it is cut, changed, mixed up or no image. `ImageUnsupported`, `Io`.
pub fn verify(image: &Path, interrupt: &Interrupt, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified> {
    let mut unreadable = UnreadableRanges::default();
    let mut header = None;
    let mut size = 0;
    let end = ImageSource::open(image)?.decode(interrupt, |event| {
        match event {
            Event::Header(found) => {
                size = found.size;
                header = Some(*found);
            }
            Event::Records(_) => {}
            Event::Data { range, .. } => progress(range.end(), size),
            Event::Zero { range, kind } => {
                if kind == Kind::Unreadable {
                    unreadable.add(range);
                }
                progress(range.end(), size);
            }
        }
        Ok(())
    })?;
    Ok(Verified {
        header: header.expect("a decoder that finishes gave a header first"),
        end,
        unreadable,
    })
}
