//! `verify`: reads a whole image and says whether it is what was written.

mod against;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use against::{Comparison, Differences, compare};

use crate::chain::{Chain, ParentChain, find_parents};
use crate::error::Result;
use crate::image::{End, Event, Header, Kind, ParentImage};
use crate::image_source::ImageSource;
use crate::interrupt::Interrupt;
use crate::unreadable::UnreadableRanges;

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

/// Verifies an image; `-` is standard input. Everything is decompressed and hashed: frames, leaves, root, records, counts, seek
/// table, and that nothing follows. Of an incremental one all images that it continues are verified too; they are looked for among
/// `parents` and beside it. `progress` is told bytes of the volume done, and its size; `interrupt` ends it.
///
/// # Errors
/// [`crate::error::ErrorKind::ImageBad`]: it is cut, changed, mixed up, no image, or lacks a parent. `ImageUnsupported`, `Io`.
pub fn verify(
    image: &Path,
    parents: &[PathBuf],
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified> {
    let source = ImageSource::open(image)?;
    if !source.is_seekable()? || source.parent()?.is_none() {
        return verify_one(source, None, interrupt, progress);
    }
    let paths = find_parents(image, parents)?;
    let mut verified = None;
    for depth in (0..paths.len()).rev() {
        let older = match paths.get(depth + 1..) {
            None | Some([]) => None,
            Some(older) => Some(Arc::new(Chain::open(older)?)),
        };
        let source = ImageSource::open(&paths[depth])?;
        verified = Some(verify_one(source, older.map(ParentChain), interrupt, progress)?);
    }
    let mut verified = verified.expect("a chain has an image");
    verified.unreadable = Chain::open(&paths)?.unreadable()?;
    Ok(verified)
}

fn verify_one(
    mut source: ImageSource,
    parent: Option<ParentChain>,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified> {
    let mut unreadable = UnreadableRanges::default();
    let mut header = None;
    let mut size = 0;
    let parent = parent.map(|parent| Box::new(parent) as Box<dyn ParentImage>);
    let end = source.decode_over(parent, interrupt, |event| {
        match event {
            Event::Header(found) => {
                size = found.size;
                header = Some(*found);
            }
            Event::Records(_) | Event::Checkpoint(_) => {}
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

impl Verified {
    /// One JSON object; with what came of a comparison, if there was one.
    pub fn to_json(&self, comparison: Option<&Comparison>) -> serde_json::Value {
        let header = &self.header;
        let mut json = serde_json::json!({
            "size": header.size,
            "root": self.end.root,
            "frozen": (!header.frozen.is_nil()).then(|| header.frozen.to_string()),
            "unreadable": self.unreadable,
        });
        if let (Some(comparison), Some(object)) = (comparison, json.as_object_mut()) {
            object.insert("against".to_owned(), serde_json::json!(comparison));
        }
        json
    }
}
