//! One image of a chain, read at any place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use volmap::range::ByteRange;

use super::cache::Cache;
use crate::error::{Error, Result};
use crate::image::{
    Count, End, FOOTER, FramePlace, GroupPlace, HEADER_FRAME_MAX, Header, ImageError, OpenGroup, Outline,
    RECORDS_FRAME_MAX,
};

/// Bytes of a seek table that are read at a time: whole entries.
const TABLE_READ: u64 = 1 << 20;

/// An image in a file, with where its groups are.
pub(super) struct Member {
    file: File,
    path: PathBuf,
    outline: Outline,
    end: End,
    groups: Vec<GroupPlace>,
    cache: Arc<Cache>,
    /// Its number in the cache.
    number: u64,
}

impl Member {
    /// Opens an image by its header, END and seek table.
    pub(super) fn open(path: &Path, cache: &Arc<Cache>) -> Result<Self> {
        let failed = |error| Error::io("opening the image", path, error);
        let bad = |error: ImageError| Error::from(error).at_path(path);
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let read = |at, length| read_at(&file, path, at, length);
        let first = read(0, length.min(HEADER_FRAME_MAX as u64))?;
        let last = length.saturating_sub(FOOTER as u64);
        let outline = Outline::new(length, &first, &read(last, length - last)?).map_err(bad)?;
        let range = outline.end_range();
        let (end, mut check) = outline
            .end(&read(range.start, range.end - range.start)?)
            .map_err(bad)?;
        let mut groups: Vec<GroupPlace> = Vec::new();
        let entries = outline.entries_range();
        let (mut at, mut in_file, mut in_volume, mut ours) = (entries.start, 0, 0, None);
        while at < entries.end {
            let bytes = read(at, (entries.end - at).min(TABLE_READ))?;
            check.push(&bytes);
            at += bytes.len() as u64;
            for entry in bytes.as_chunks::<8>().0 {
                let number =
                    |bytes: &[u8]| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                let (compressed, plain) = (number(&entry[..4]), number(&entry[4..]));
                match (plain, ours.take()) {
                    (0, _) => ours = Some((in_file, compressed)),
                    // What follows a frame of ours is the first of a group, and that frame its RECORDS.
                    (_, Some((at, records_length))) => {
                        // What a decoder does not take is not read here either: memory is spent on what is said of lengths.
                        if records_length > RECORDS_FRAME_MAX {
                            return Err(bad(ImageError::FrameLength { at }));
                        }
                        let number = groups.len() as u64;
                        if number == end.groups {
                            return Err(bad(ImageError::Counted {
                                count: Count::Groups,
                                stated: number,
                                found: number + 1,
                            }));
                        }
                        groups.push(GroupPlace {
                            number,
                            start: in_volume,
                            at,
                            records_length,
                        });
                    }
                    (_, None) => {}
                }
                in_file += compressed;
                in_volume += plain;
            }
        }
        check.finish().map_err(bad)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            outline,
            end,
            groups,
            number: cache.number_image(),
            cache: Arc::clone(cache),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn header(&self) -> &Header {
        self.outline.header()
    }

    pub(super) fn end(&self) -> &End {
        &self.end
    }

    /// The group that holds a byte of the volume.
    pub(super) fn group_at(&self, byte: u64) -> Result<Arc<OpenGroup>> {
        let index = self.groups.partition_point(|group| group.start <= byte);
        let Some(place) = index.checked_sub(1).and_then(|index| self.groups.get(index)) else {
            return Err(self.bad(ImageError::GroupRange {
                at: 0,
                expected: byte,
            }));
        };
        self.cache.group(self.number, place.number, || {
            let bytes = read_at(&self.file, &self.path, place.at, place.records_length)?;
            let group = self.outline.open_group(*place, &bytes).map_err(|e| self.bad(e))?;
            let next = self
                .groups
                .get(index)
                .map_or(self.header().size, |next| next.start);
            let end = group.records().last().map_or(0, |record| record.range.end());
            if end != next {
                return Err(self.bad(ImageError::GroupRange {
                    at: place.at,
                    expected: next,
                }));
            }
            Ok(Arc::new(group))
        })
    }

    /// The frame that holds a byte of the volume, and its group.
    pub(super) fn frame_at(&self, byte: u64) -> Result<(Arc<OpenGroup>, FramePlace)> {
        let group = self.group_at(byte)?;
        let frame = group.frames().find(|frame| frame.range.contains(byte));
        match frame {
            Some(frame) => Ok((group, frame)),
            None => Err(self.bad(ImageError::GroupRange {
                at: 0,
                expected: byte,
            })),
        }
    }

    /// The bytes of a data frame.
    pub(super) fn plain(&self, group: &OpenGroup, frame: &FramePlace) -> Result<Bytes> {
        self.cache.frame(self.number, frame.range.start(), || {
            let length = frame.bytes.end - frame.bytes.start;
            let compressed = read_at(&self.file, &self.path, frame.bytes.start, length)?;
            group.plain(frame, &compressed).map_err(|e| self.bad(e))
        })
    }

    pub(super) fn bad(&self, error: ImageError) -> Error {
        Error::from(error).at_path(&self.path)
    }

    /// Whether a range ends within the volume.
    pub(super) fn holds(&self, range: ByteRange) -> bool {
        range.end() <= self.header().size
    }
}

fn read_at(file: &File, path: &Path, at: u64, length: u64) -> Result<Vec<u8>> {
    let length = usize::try_from(length).expect("pieces of an image fit the memory");
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Error::from(ImageError::Truncated { at }).at_path(path)
        } else {
            Error::io("reading the image", path, error)
        }
    })?;
    Ok(bytes)
}
