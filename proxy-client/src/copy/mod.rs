//! Bytes from one place to another: one trait for what is read, one for what is written, and one engine between them.
//!
//! ```text
//! reader ─► pieces in order ─► fetched side by side ─► writer ─► flush ─► finish
//! ```
//!
//! A [`Reader`] gives the pieces of the source: zeroes, bytes that are here, bytes that are still to be fetched. [`run`] keeps many
//! of them in flight, and hands each to the [`Writer`]. Invariants:
//!
//! * a byte that cannot be read or written ends the copy; what is not known to be zero is read;
//! * a zero of the source is a zero of the target: old content is overwritten, unless the writer itself made the target or the
//!   operator vouches for it;
//! * nothing is finished before everything was flushed. What a lost connection may have taken with it is written again
//!   ([`Writer::flush`]), or the copy fails.

mod file_source;
mod image_reader;
mod limits;
mod mapped_reader;
mod nbd_source;
mod nbd_writer;
mod null_writer;
mod ranges;
mod reader;
mod run;
mod stream_reader;
mod stream_writer;
mod target_writer;
mod writer;

pub(crate) use file_source::FileSource;
pub(crate) use image_reader::ImageReader;
pub(crate) use limits::STREAM_READ;
pub(crate) use mapped_reader::{MappedReader, RandomAccess, Run};
pub(crate) use nbd_source::{ALLOCATION, NbdSource};
pub(crate) use nbd_writer::NbdWriter;
pub(crate) use null_writer::NullWriter;
pub(crate) use reader::Reader;
pub(crate) use run::{Flow, run};
pub(crate) use stream_reader::StreamReader;
pub(crate) use stream_writer::StreamWriter;
pub(crate) use target_writer::TargetWriter;
pub(crate) use writer::Writer;
