//! `restore`: writes the volume of an image to a new file, an existing file or a block device.

use std::path::{Path, PathBuf};

use super::UnreadableRanges;
use crate::error::{Error, Result};
use crate::image::{End, Event, Header, Kind};
use crate::image_source::ImageSource;
use crate::interrupt::Interrupt;
use crate::restore::Target;

/// What to restore, and to where.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The image; `-` is standard input.
    pub image: PathBuf,
    /// A name that is free, a regular file, or a block device.
    pub output: PathBuf,
    /// Give up what the target holds. Never helps against mounted, in use, too small, or a LUN that is being read.
    pub force: bool,
}

/// A restored volume.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Header of the image.
    pub header: Header,
    /// END of the image, verified.
    pub end: End,
    /// What could not be read when the image was made; zeroes stand there now. [`UnreadableRanges::error`] is what the
    /// command ends with.
    pub unreadable: UnreadableRanges,
    /// Bytes of a device behind the volume, which are as they were.
    pub left_alone: u64,
}

/// Restores a volume, and verifies the image while it does.
///
/// * A name that is free: the file appears under it, durable, only when the whole image proved good; zeroes are holes.
/// * A regular file: it is emptied (with `force`, if it is not empty) and written in place; it ends as long as the volume.
/// * A block device: overwritten in place, zeroes included; what lies behind the volume is left alone.
///
/// `progress` is told bytes of the volume done, and its size; `interrupt` ends it as an error does.
///
/// # Errors
/// Before anything is changed: `TargetNotEmpty`, `TargetBusy`, `TargetTooSmall`, `TargetUnfit`, `OutputIsSource`,
/// `OutputExists`, and, where the image is a file, `ImageBad` if it was cut. Later: `ImageBad`, `Io`; an existing target is
/// incomplete then, and the message says so.
pub fn restore(
    options: &RestoreOptions,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored> {
    let mut source = ImageSource::open(&options.image)?;
    if source.is_seekable()? {
        // An image that was cut is found out before a target is given up for it.
        source.outline()?;
    }
    let image = source.id()?;
    let mut opened: Option<(Target, Header)> = None;
    let mut unreadable = UnreadableRanges::default();
    let decoded = source.decode(interrupt, |event| {
        let Some((target, header)) = &mut opened else {
            if let Event::Header(header) = event {
                let target = Target::open(&options.output, header.size, options.force, image)?;
                opened = Some((target, *header));
            }
            return Ok(());
        };
        match event {
            Event::Header(_) | Event::Records(_) => {}
            Event::Data { range, bytes } => {
                target.write(range, &bytes)?;
                progress(range.end(), header.size);
            }
            Event::Zero { range, kind } => {
                target.zero(range)?;
                if kind == Kind::Unreadable {
                    unreadable.add(range);
                }
                progress(range.end(), header.size);
            }
        }
        Ok(())
    });
    let (target, header, decoded) = match (opened, decoded) {
        (Some((target, header)), decoded) => (target, header, decoded),
        (None, Err(error)) => return Err(error),
        (None, Ok(_)) => panic!("a decoder that finishes gave a header first"),
    };
    let (left_alone, existing) = (target.left_alone(), target.is_existing());
    match decoded.and_then(|end| target.finish().map(|()| end)) {
        Ok(end) => Ok(Restored {
            header,
            end,
            unreadable,
            left_alone,
        }),
        Err(error) if existing => Err(incomplete(error, &options.output)),
        Err(error) => Err(error),
    }
}

/// The cause keeps its kind, and with it its exit code; the sentence is about the target.
fn incomplete(error: Error, output: &Path) -> Error {
    Error::new(
        error.kind(),
        "the restore failed: the target is incomplete and must not be used",
    )
    .at_path(output)
    .caused_by(error)
}
