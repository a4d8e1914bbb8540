//! The engine: pieces are fetched side by side and written.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream, TryStreamExt};
use volmap::range::ByteRange;

use super::limits::{BYTES_IN_FLIGHT, ROUNDS};
use super::reader::{Content, Piece, Reader};
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::image::is_zero;

/// How much is in flight, and what is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// Pieces in flight.
    pub(crate) requests: usize,
    /// Longest piece of data.
    pub(crate) step: u64,
    /// Zeroes of this length and alignment in data are written as zeroes; 0: data are not looked at.
    pub(crate) sparse: usize,
}

impl Flow {
    /// Pieces in flight that keep to the limit of bytes as well.
    fn width(self) -> usize {
        let by_bytes = usize::try_from(BYTES_IN_FLIGHT / self.step.max(1)).unwrap_or(usize::MAX);
        self.requests.min(by_bytes).max(1)
    }
}

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Copied {
    /// Bytes of the source.
    pub(crate) size: u64,
    /// Bytes that were written as data.
    pub(crate) data: u64,
    /// Bytes that the source knows to be zero, or that were found to be.
    pub(crate) zeroes: u64,
    /// Bytes that were written again, because a lost connection may have taken them with it.
    pub(crate) again: u64,
}

/// Copies everything, and finishes the target. `progress` is told the bytes done.
///
/// # Errors
/// The first error of either side; the target is not finished then.
pub(crate) async fn run(
    reader: &mut dyn Reader,
    writer: Arc<dyn Writer>,
    flow: Flow,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Copied> {
    let mut copied = pass(reader, &*writer, flow, progress).await?;
    copied.size = copied.data + copied.zeroes;
    let mut rounds = 0;
    loop {
        let unsure = writer.flush().await?;
        if unsure.is_empty() {
            break;
        }
        rounds += 1;
        let bytes: u64 = unsure.iter().map(|range| range.len()).sum();
        tracing::warn!(
            bytes,
            "what the lost connection may have taken with it is written again"
        );
        if rounds > ROUNDS {
            let message =
                "the connection to the target was lost again and again, and with it what was not flushed";
            return Err(Error::new(ErrorKind::HostLost, message));
        }
        if !reader.rewind(unsure) {
            let message = "the connection to the target was lost, and with it perhaps what was not flushed: this source cannot be read again";
            return Err(Error::new(ErrorKind::HostLost, message));
        }
        let again = pass(reader, &*writer, flow, &mut |_| ()).await?;
        copied.again += again.data + again.zeroes;
    }
    writer.finish(copied.size).await?;
    Ok(copied)
}

/// Copies what the reader has to give.
async fn pass(
    reader: &mut dyn Reader,
    writer: &dyn Writer,
    flow: Flow,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Copied> {
    let mut copied = Copied::default();
    let mut note = |done: Copied| {
        copied.data += done.data;
        copied.zeroes += done.zeroes;
        progress(copied.data + copied.zeroes);
    };
    if writer.is_stream() {
        let fetched = pieces(reader)
            .map_ok(|piece| fetch(piece, flow))
            .try_buffered(flow.width());
        let mut fetched = std::pin::pin!(fetched);
        while let Some(parts) = fetched.try_next().await? {
            note(write(parts, writer).await?);
        }
    } else {
        let written = pieces(reader)
            .map_ok(|piece| async move { write(fetch(piece, flow).await?, writer).await })
            .try_buffer_unordered(flow.width());
        let mut written = std::pin::pin!(written);
        while let Some(done) = written.try_next().await? {
            note(done);
        }
    }
    Ok(copied)
}

fn pieces(reader: &mut dyn Reader) -> impl Stream<Item = Result<Piece>> {
    stream::try_unfold(reader, async |reader| {
        let piece = reader.next().await?;
        Ok(piece.map(|piece| (piece, reader)))
    })
}

/// A part of a piece: bytes, or zeroes.
type Part = (ByteRange, Option<Bytes>);

async fn fetch(piece: Piece, flow: Flow) -> Result<Vec<Part>> {
    let bytes = match piece.content {
        Content::Zero => return Ok(vec![(piece.range, None)]),
        Content::Bytes(bytes) => bytes,
        Content::Later(bytes) => bytes.await?,
    };
    assert_eq!(
        bytes.len() as u64,
        piece.range.len(),
        "a read gives all or nothing"
    );
    Ok(parts(piece.range, &bytes, flow.sparse))
}

/// Tells zeroes from data in blocks of `block` bytes of the volume.
fn parts(range: ByteRange, bytes: &Bytes, block: usize) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    // Where the current part begins in the bytes, and whether it is zero.
    let mut begun: Option<(usize, bool)> = None;
    let mut end = |from: usize, to: usize, zero: bool| {
        let bounds = ByteRange::from_bounds(range.start() + from as u64, range.start() + to as u64);
        parts.extend(bounds.map(|part| (part, (!zero).then(|| bytes.slice(from..to)))));
    };
    let mut at = 0;
    while block > 0 && at < bytes.len() {
        let into = usize::try_from(range.start() % block as u64).unwrap_or(0);
        let next = if at == 0 { block - into } else { at + block }.min(bytes.len());
        // Only whole blocks become zeroes, but for the ends of the range.
        let zero = is_zero(&bytes[at..next]);
        match begun {
            Some((from, kind)) if kind != zero => {
                end(from, at, kind);
                begun = Some((at, zero));
            }
            None => begun = Some((at, zero)),
            Some(_) => {}
        }
        at = next;
    }
    let (from, kind) = begun.unwrap_or((0, false));
    end(from, bytes.len(), kind);
    parts
}

async fn write(parts: Vec<Part>, writer: &dyn Writer) -> Result<Copied> {
    let mut copied = Copied::default();
    for (range, bytes) in parts {
        if let Some(bytes) = bytes {
            writer.write(range.start(), bytes).await?;
            copied.data += range.len();
        } else {
            writer.zero(range).await?;
            copied.zeroes += range.len();
        }
    }
    Ok(copied)
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the volumes of these tests are small"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_tile_the_piece_and_hold_its_bytes(
            start in 0u64..10_000,
            bytes in proptest::collection::vec(prop_oneof![9 => Just(0u8), 1 => Just(1u8)], 1..3000),
            block in prop_oneof![Just(0usize), Just(64), Just(512), Just(4096)],
        ) {
            let bytes = Bytes::from(bytes);
            let range = ByteRange::new(start, bytes.len() as u64).unwrap();
            let mut at = start;
            let mut last = None;
            for (part, data) in parts(range, &bytes, block) {
                prop_assert_eq!(part.start(), at);
                let held = bytes.slice((at - start) as usize..(part.end() - start) as usize);
                at = part.end();
                match &data {
                    Some(data) => prop_assert_eq!(data, &held),
                    None => prop_assert!(is_zero(&held)),
                }
                prop_assert!(last != Some(data.is_some()), "neighbours of one kind are one part");
                last = Some(data.is_some());
                prop_assert!(block == 0 || at == range.end() || at % block as u64 == 0);
            }
            prop_assert_eq!(at, range.end());
        }
    }
}
