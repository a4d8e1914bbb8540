//! `inspect`: what an image says of itself, without reading its data.

use std::fmt;
use std::path::Path;

use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::image::{End, Header};
use crate::image_source::ImageSource;

/// Header and END of an image. Their checksums are right, and the file is as long as its seek table says; whether the
/// data between them are whole only `verify` finds out.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The header, with the chain of stores and the LUNs.
    pub header: Header,
    /// END, with the receipt summed up.
    pub end: End,
}

/// Inspects an image file.
///
/// # Errors
/// `ImageBad`, `ImageUnsupported`, `Io`; `Usage` for anything but a regular file.
pub fn inspect(image: &Path) -> Result<Inspected> {
    let source = ImageSource::open(image)?;
    if !source.is_seekable()? {
        return Err(Error::new(
            ErrorKind::Usage,
            "only an image in a regular file can be inspected; verify reads streams",
        )
        .at_path(image));
    }
    let (header, end) = source.outline()?;
    Ok(Inspected { header, end })
}

impl Inspected {
    /// One JSON object.
    pub fn to_json(&self) -> Value {
        let (header, end) = (&self.header, &self.end);
        json!({
            "image": header.image.to_string(),
            "volume": header.volume,
            "size": header.size,
            "frozen": (!header.frozen.is_nil()).then(|| header.frozen.to_string()),
            "parent": header.parent.map(|parent| json!({ "frozen": parent.frozen.to_string(), "root": parent.root })),
            "bytes_same": end.tally.same,
            "description": header.description,
            "created": header.created,
            "software": header.software,
            "stores": header.stores,
            "luns": header.luns,
            "root": end.root,
            "groups": end.groups,
            "frames": end.frames,
            "records": end.tally.records,
            "bytes_data": end.tally.data,
            "bytes_zero": end.tally.zero,
            "bytes_hole": end.tally.hole,
            "bytes_unreadable": end.tally.unreadable,
            "bytes_direct": end.tally.direct,
            "bytes_nbd": end.tally.nbd,
            "bytes_moved": end.totals.moved,
            "bytes_remapped_direct": end.totals.remapped_direct,
            "validations": end.totals.validations,
        })
    }
}

/// A few lines for people.
impl fmt::Display for Inspected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (header, end) = (&self.header, &self.end);
        writeln!(f, "volume    {} ({})", header.volume, HumanBytes(header.size))?;
        if header.frozen.is_nil() {
            writeln!(f, "frozen    the server named no frozen image")?;
        } else {
            writeln!(f, "frozen    {}", header.frozen)?;
        }
        if let Some(parent) = &header.parent {
            writeln!(f, "parent    {}, root {}", parent.frozen, parent.root)?;
            writeln!(f, "same      {}", HumanBytes(end.tally.same))?;
        }
        if !header.description.is_empty() {
            writeln!(f, "          {}", header.description)?;
        }
        writeln!(f, "image     {} by {}", header.image, header.software)?;
        writeln!(f, "root      {}", end.root)?;
        for store in &header.stores {
            match store.depth {
                Some(depth) => writeln!(f, "store {depth}   {}", store.identity)?,
                None => writeln!(f, "disk      {}", store.identity)?,
            }
        }
        for lun in &header.luns {
            writeln!(
                f,
                "lun       {} at {}, proof: {}",
                lun.identity, lun.path, lun.proof
            )?;
        }
        writeln!(f, "direct    {}", HumanBytes(end.tally.direct))?;
        writeln!(f, "nbd       {}", HumanBytes(end.tally.nbd))?;
        writeln!(f, "zero      {}", HumanBytes(end.tally.zero + end.tally.hole))?;
        writeln!(
            f,
            "moved     {}, {} of it then read directly",
            HumanBytes(end.totals.moved),
            HumanBytes(end.totals.remapped_direct)
        )?;
        write!(f, "damaged   {}", HumanBytes(end.tally.unreadable))
    }
}
