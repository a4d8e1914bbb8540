//! An image that was left unfinished: read up to where it is good, and written on from its last checkpoint.

use bytes::Bytes;

use super::checkpoint::Checkpoint;
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::end::{End, Tally};
use super::error::ImageError;
use super::frame::Key;
use super::hash::RootHasher;
use super::header::Header;
use super::layout::TABLE_ENTRY;
use super::parent::ParentImage;
use super::seek_table::TableHasher;

/// State of an image right before a checkpoint, or right behind the header.
#[derive(Clone)]
pub(super) struct ResumePoint {
    pub(super) at: u64,
    /// `None`: behind the header, where nothing is done yet.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) key: Key,
    pub(super) position: u64,
    pub(super) groups: u64,
    pub(super) tally: Tally,
    pub(super) root: RootHasher,
    pub(super) table: TableHasher,
}

/// The last of them, and what a writer needs to go on.
pub(super) struct LastPoint {
    pub(super) header: Header,
    pub(super) point: ResumePoint,
    /// Seek table up to there, at least.
    pub(super) table: Vec<u8>,
}

/// Reads an unfinished image: fed like a [`Decoder`], which checks everything, and then asked where to go on.
pub struct UnfinishedImage {
    decoder: Decoder,
}

impl Default for UnfinishedImage {
    fn default() -> Self {
        Self::new()
    }
}

impl UnfinishedImage {
    /// At the beginning of the file.
    pub fn new() -> Self {
        Self {
            decoder: Decoder::remembering(),
        }
    }

    /// The same of an incremental one, over the image that it continues.
    #[must_use]
    pub fn over(self, parent: Option<Box<dyn ParentImage>>) -> Self {
        Self {
            decoder: self.decoder.with_parent(parent),
        }
    }

    /// What checks it: push into it, and take its events.
    pub fn decoder(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// At the end of the file, or after the first error: where to go on. Everything before that place was read, and is as it was
    /// written.
    ///
    /// # Errors
    /// What is wrong with the file, where there is not even a header to go on from.
    pub fn finish(self) -> Result<Found, ImageError> {
        let (finished, last) = self.decoder.into_last_point();
        match (finished, last) {
            // What is whole has a header.
            (Ok(end), Some(last)) => Ok(Found::Whole(Box::new(WholeImage {
                end,
                header: last.header,
                at: last.point.at,
            }))),
            (Ok(_), None) => unreachable!("what is whole has a header"),
            (Err(broken), Some(last)) => Ok(Found::Unfinished(Box::new(Resumption { last, broken }))),
            (Err(broken), None) => Err(broken),
        }
    }
}

/// What an unfinished image turned out to be.
pub enum Found {
    /// Nothing is missing.
    Whole(Box<WholeImage>),
    /// It ends, or is no good, behind a checkpoint.
    Unfinished(Box<Resumption>),
}

/// An image of which nothing is missing. What lies behind its last checkpoint was never known to be durable.
#[derive(Debug)]
pub struct WholeImage {
    /// Its END.
    pub end: End,
    /// Its header.
    pub header: Header,
    /// Where its last checkpoint begins, or the header ends.
    pub at: u64,
}

/// Where an image goes on.
pub struct Resumption {
    last: LastPoint,
    broken: ImageError,
}

impl Resumption {
    /// The header of the image.
    pub fn header(&self) -> &Header {
        &self.last.header
    }

    /// Where the file is cut: what follows is written anew.
    pub fn at(&self) -> u64 {
        self.last.point.at
    }

    /// Bytes of the volume that are done.
    pub fn position(&self) -> u64 {
        self.last.point.position
    }

    /// Bytes by kind and transport that are done.
    pub fn tally(&self) -> Tally {
        self.last.point.tally
    }

    /// What the job noted.
    pub fn checkpoint(&self) -> Checkpoint {
        self.last.point.checkpoint.clone().unwrap_or_default()
    }

    /// What is wrong with the file behind the checkpoint; most often it just ends.
    pub fn broken(&self) -> &ImageError {
        &self.broken
    }

    /// The encoder as it stood, and what is to be written first at [`Self::at`]: the checkpoint itself, which was never
    /// known to be durable.
    pub fn into_encoder(self) -> (Encoder, Bytes) {
        let LastPoint {
            header,
            mut point,
            mut table,
        } = self.last;
        let entries = usize::try_from(point.table.frames()).expect("the table is in memory");
        table.truncate(entries * TABLE_ENTRY);
        let checkpoint = point.checkpoint.take();
        let mut encoder = Encoder::at(&header, point, table);
        let first = checkpoint.map_or_else(Bytes::new, |checkpoint| encoder.checkpoint(&checkpoint));
        (encoder, first)
    }
}
