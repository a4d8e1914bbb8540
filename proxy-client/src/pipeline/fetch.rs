//! One batch: read, validate, read again what moved (laws P0 to P4). Nothing leaves here that was not confirmed.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use volmap::generation::Generation;
use volmap::map::Content;
use volmap::range::ByteRange;

use super::limits::{DIRECT_ROUNDS, LONGEST_DIRECT_READ, LONGEST_NBD_READ, NBD_READS_IN_FLIGHT};
use super::luns::Luns;
use super::source::{FrozenSource, generations_whole, map_whole};
use super::tally::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Kind, Receipt, Record, Transport};
use crate::plan::batch::Batch;
use crate::plan::mapped::{MappedExtent, unconfirmed};
use crate::plan::reads::{DirectRead, gather};
use crate::transport::direct::LunBytes;

/// How the batches of a job are fetched.
#[derive(Clone, Copy, Debug, Default)]
pub struct FetchPolicy {
    /// Share of direct reads, in percent, that are read through the host as well and compared.
    pub audit_percent: f64,
}

/// A batch whose every byte is confirmed.
#[derive(Debug)]
pub struct Fetched {
    /// The runs of leaves of the batch, with their plain bytes where they hold data.
    pub stretches: Vec<FetchedStretch>,
    /// What the batch's range holds and how it was got, in order, exactly once.
    pub records: Vec<Record>,
    /// What to count when the batch is committed.
    pub tally: Tally,
}

/// A run of leaves.
#[derive(Debug)]
pub struct FetchedStretch {
    /// Whole leaves of the volume.
    pub range: ByteRange,
    /// The bytes of the range; `None`: all of it is zero.
    pub bytes: Option<Vec<u8>>,
}

/// A piece of the batch on its way.
#[derive(Clone, Debug)]
struct Piece {
    extent: MappedExtent,
    /// A read of it was thrown away because it was not confirmed.
    moved: bool,
    /// Why it cannot be direct, where that was found out after the map was made.
    reason: Option<String>,
}

impl Piece {
    fn is_zero(&self) -> bool {
        self.extent.content != Content::Data
    }

    fn is_direct(&self) -> bool {
        self.extent.place.is_some() && self.extent.generation.is_direct() && self.reason.is_none()
    }
}

/// Fetches a batch. `stale` says that the map was learnt before the latest confirmation, so that it is confirmed before
/// it is read by (law P0).
///
/// # Errors
/// The frozen image is gone, the host is lost, a LUN is the wrong disk, or an audit found a difference.
pub(super) async fn fetch<S: FrozenSource>(
    source: &S,
    luns: &Luns,
    policy: FetchPolicy,
    batch: Batch,
    stale: bool,
) -> Result<Fetched> {
    let mut work = Work::new(source, luns, policy, &batch);
    let mut todo: Vec<Piece> = batch
        .extents
        .iter()
        .map(|&extent| Piece {
            extent,
            moved: false,
            reason: None,
        })
        .collect();
    if stale && batch.extents.iter().any(|e| e.generation.is_direct()) {
        let now = generations_whole(source, batch.range).await?;
        let moved = unconfirmed(&batch.extents, &now);
        todo = work.ask_again(todo, &moved, false).await?;
    }
    let mut round = 1;
    while !todo.is_empty() {
        work.make_nbd_what_must_be(&mut todo, round).await?;
        work.read_direct(&mut todo).await?;
        let moved = work.validate(&todo).await?;
        let (confirmed, again) = split(todo, &moved);
        work.keep(confirmed, round).await?;
        todo = work.ask_again(again, &moved, true).await?;
        round += 1;
    }
    Ok(work.finish())
}

/// Cuts pieces along `ranges` into those outside and those inside.
fn split(pieces: Vec<Piece>, ranges: &[ByteRange]) -> (Vec<Piece>, Vec<Piece>) {
    let (mut outside, mut inside) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut at = piece.extent.range.start();
        let part = |range| {
            piece.extent.clipped(range).map(|extent| Piece {
                extent,
                ..piece.clone()
            })
        };
        let first = ranges.partition_point(|r| r.end() <= at);
        for cut in ranges[first..]
            .iter()
            .map_while(|r| r.intersection(piece.extent.range))
        {
            outside.extend(ByteRange::from_bounds(at, cut.start()).and_then(part));
            inside.extend(part(cut));
            at = cut.end();
        }
        outside.extend(ByteRange::from_bounds(at, piece.extent.range.end()).and_then(part));
    }
    (outside, inside)
}

struct Work<'a, S> {
    source: &'a S,
    luns: &'a Luns,
    policy: FetchPolicy,
    stretches: Vec<FetchedStretch>,
    records: Vec<Record>,
    tally: Tally,
}

impl<'a, S: FrozenSource> Work<'a, S> {
    fn new(source: &'a S, luns: &'a Luns, policy: FetchPolicy, batch: &Batch) -> Self {
        let stretches = batch
            .stretches
            .iter()
            .map(|stretch| FetchedStretch {
                range: stretch.range,
                bytes: (!stretch.zero).then(|| vec![0; memory_len(stretch.range.len())]),
            })
            .collect();
        Self {
            source,
            luns,
            policy,
            stretches,
            records: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Law P4: the mapping of what moved, and of nothing else. `read` says that bytes were thrown away for it.
    async fn ask_again(&mut self, pieces: Vec<Piece>, moved: &[ByteRange], read: bool) -> Result<Vec<Piece>> {
        let (mut kept, lost) = split(pieces, moved);
        for piece in lost {
            let thrown_away = read && piece.is_direct();
            if thrown_away {
                // What was not confirmed leaves no trace: its range may turn out to be zero.
                self.bytes_mut(piece.extent.range).fill(0);
                if !piece.moved {
                    self.tally.bytes_moved += piece.extent.range.len();
                }
            }
            for extent in map_whole(self.source, piece.extent.range).await? {
                if piece.is_zero() && extent.content == Content::Data {
                    self.insist_on_zero(extent.range).await?;
                    // Seen through the host, so there is nothing left that a generation could confirm.
                    let extent = MappedExtent {
                        content: piece.extent.content,
                        generation: Generation::NEVER_DIRECT,
                        place: None,
                        ..extent
                    };
                    kept.push(Piece {
                        extent,
                        ..piece.clone()
                    });
                } else {
                    kept.push(Piece {
                        extent,
                        moved: piece.moved || thrown_away,
                        reason: None,
                    });
                }
            }
        }
        kept.sort_by_key(|piece| piece.extent.range.start());
        Ok(kept)
    }

    /// A range that was published as zero, and no longer is, must still read as zeroes: its frozen bytes never change.
    async fn insist_on_zero(&self, range: ByteRange) -> Result<()> {
        for part in parts(range, LONGEST_NBD_READ) {
            if self.source.read(part).await?.iter().any(|&byte| byte != 0) {
                let message = "the host published zeroes for a range that holds data";
                return Err(Error::new(ErrorKind::HostMisbehaved, message).in_range(part));
            }
        }
        Ok(())
    }

    /// Notes a reason on every piece of data that is not to be read directly in this round. Zeroes whose mapping does not settle
    /// are looked at through the host as well (law P4), and need no confirmation then.
    async fn make_nbd_what_must_be(&self, todo: &mut [Piece], round: u8) -> Result<()> {
        if round > DIRECT_ROUNDS {
            let unsettled = |p: &&mut Piece| p.is_zero() && p.extent.generation.is_direct();
            for piece in todo.iter_mut().filter(unsettled) {
                self.insist_on_zero(piece.extent.range).await?;
                piece.extent.generation = Generation::NEVER_DIRECT;
            }
        }
        let extents: Vec<MappedExtent> = todo.iter().map(|p| p.extent).collect();
        // Asked once for a LUN: what cannot be proven now would cost a search for samples for every piece.
        let mut verdicts: BTreeMap<u16, Option<String>> = BTreeMap::new();
        for piece in todo.iter_mut().filter(|p| !p.is_zero() && p.reason.is_none()) {
            piece.reason = match piece.extent.place {
                _ if round > DIRECT_ROUNDS => Some(format!("moved again in each of {DIRECT_ROUNDS} rounds")),
                Some(place) => match verdicts.get(&place.disk) {
                    Some(verdict) => verdict.clone(),
                    None => {
                        let verdict = self.luns.prove(place.disk, self.source, &extents).await?.err();
                        verdicts.entry(place.disk).or_insert(verdict).clone()
                    }
                },
                None if !piece.extent.generation.is_direct() => {
                    Some("the host gives no location for it".into())
                }
                None => Some("it lies on a disk that no --lun names".into()),
            };
        }
        Ok(())
    }

    /// Law P2. A LUN that cannot be read sends the piece to NBD, with the reason.
    async fn read_direct(&mut self, todo: &mut [Piece]) -> Result<()> {
        let wanted: Vec<MappedExtent> = todo.iter().filter(|p| p.is_direct()).map(|p| p.extent).collect();
        let luns = self.luns;
        let results: Vec<(DirectRead, std::io::Result<LunBytes>)> =
            stream::iter(gather(&wanted, LONGEST_DIRECT_READ))
                .map(|read| async move {
                    let result = luns.read(read.disk, read.range).await;
                    (read, result)
                })
                .buffer_unordered(NBD_READS_IN_FLIGHT)
                .collect()
                .await;
        for (read, result) in results {
            match result {
                Ok(blocks) => {
                    for piece in &read.scatter {
                        let skip = memory_len(piece.disk_offset - read.range.start());
                        let bytes = &blocks.bytes()[skip..][..memory_len(piece.volume.len())];
                        self.place(piece.volume, bytes);
                    }
                }
                Err(error) => {
                    tracing::warn!(lun = %self.luns.lun(read.disk).identity, range = %read.range, %error, "direct read failed");
                    for piece in todo.iter_mut().filter(|p| p.is_direct()) {
                        if read
                            .scatter
                            .iter()
                            .any(|s| s.volume.intersection(piece.extent.range).is_some())
                        {
                            piece.reason = Some(format!("the LUN could not be read: {}", error.kind()));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Law P3: which parts of what was read or taken as zero are not confirmed now, after every read has completed.
    async fn validate(&mut self, todo: &[Piece]) -> Result<Vec<ByteRange>> {
        let claims: Vec<MappedExtent> = todo
            .iter()
            .filter(|p| p.is_direct() || p.is_zero())
            .map(|p| p.extent)
            .filter(|e| e.generation.is_direct())
            .collect();
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return Ok(Vec::new());
        };
        let Some(span) = ByteRange::from_bounds(first.range.start(), last.range.end()) else {
            return Ok(Vec::new());
        };
        let now = generations_whole(self.source, span).await?;
        self.tally.validations += 1;
        Ok(unconfirmed(&claims, &now))
    }

    /// Records confirmed pieces, and reads over NBD what is not direct.
    async fn keep(&mut self, pieces: Vec<Piece>, round: u8) -> Result<()> {
        for piece in &pieces {
            let range = piece.extent.range;
            let generation = piece.extent.generation;
            let (kind, transport, lun, rounds) = match piece.extent.content {
                Content::Zero => (Kind::Zero, Transport::None, 0, 0),
                Content::Hole => (Kind::Hole, Transport::None, 0, 0),
                Content::Data => match piece.extent.place {
                    Some(place) if piece.is_direct() => {
                        (Kind::Data, Transport::Direct, place.disk, round - 1)
                    }
                    _ => (Kind::Data, Transport::Nbd, 0, round - 1),
                },
            };
            match transport {
                Transport::None => self.tally.bytes_zero += range.len(),
                Transport::Direct => {
                    self.tally.bytes_direct += range.len();
                    if piece.moved {
                        self.tally.bytes_remapped_direct += range.len();
                    }
                }
                Transport::Nbd => {
                    self.tally.bytes_nbd += range.len();
                    self.tally
                        .add_reason(piece.reason.as_deref().unwrap_or("unknown"), range.len());
                }
            }
            self.records.push(Record {
                range,
                kind,
                receipt: Receipt {
                    transport,
                    lun,
                    generation,
                    rounds,
                },
            });
        }
        self.read_nbd(pieces.iter().filter(|p| !p.is_zero() && !p.is_direct()))
            .await?;
        self.audit(pieces.iter().filter(|p| p.is_direct())).await
    }

    async fn read_nbd(&mut self, pieces: impl Iterator<Item = &Piece>) -> Result<()> {
        for (range, bytes) in self
            .through_host(pieces.flat_map(|p| parts(p.extent.range, LONGEST_NBD_READ)))
            .await?
        {
            self.place(range, &bytes);
        }
        Ok(())
    }

    /// Cross-path audit: a share of the direct data once more, through the host.
    async fn audit(&mut self, pieces: impl Iterator<Item = &Piece>) -> Result<()> {
        const MILLION: u64 = 1_000_000;
        #[allow(
            clippy::cast_precision_loss,
            reason = "a random number below a million is exact"
        )]
        let chosen = |_: &ByteRange| {
            (self.luns.random().below(MILLION) as f64) < self.policy.audit_percent / 100.0 * MILLION as f64
        };
        let sampled = pieces
            .flat_map(|p| parts(p.extent.range, LONGEST_NBD_READ))
            .filter(chosen);
        for (range, bytes) in self.through_host(sampled).await? {
            if self.bytes_mut(range) != &bytes[..] {
                let message = "audit: the LUN and the host give different bytes";
                return Err(Error::new(ErrorKind::WrongLun, message).in_range(range));
            }
            self.tally.bytes_audited += range.len();
        }
        Ok(())
    }

    async fn through_host(&self, ranges: impl Iterator<Item = ByteRange>) -> Result<Vec<(ByteRange, Bytes)>> {
        let source = self.source;
        let reads: Vec<_> = ranges
            .map(|range| async move { source.read(range).await.map(|bytes| (range, bytes)) })
            .collect();
        stream::iter(reads)
            .buffer_unordered(NBD_READS_IN_FLIGHT)
            .try_collect()
            .await
    }

    fn place(&mut self, range: ByteRange, bytes: &[u8]) {
        self.bytes_mut(range).copy_from_slice(bytes);
    }

    /// The memory for a range of data: data lies in one stretch, because stretches are whole leaves around data.
    fn bytes_mut(&mut self, range: ByteRange) -> &mut [u8] {
        let index = self.stretches.partition_point(|s| s.range.end() <= range.start());
        let stretch = &mut self.stretches[index];
        let skip = memory_len(range.start() - stretch.range.start());
        let bytes = stretch.bytes.as_mut().expect("a stretch with data has memory");
        &mut bytes[skip..][..memory_len(range.len())]
    }

    fn finish(mut self) -> Fetched {
        self.records.sort_by_key(|record| record.range.start());
        self.records.dedup_by(|next, kept| {
            let joins = kept.range.end() == next.range.start()
                && (kept.kind, kept.receipt) == (next.kind, next.receipt);
            if joins && let Some(joined) = ByteRange::from_bounds(kept.range.start(), next.range.end()) {
                kept.range = joined;
            }
            joins
        });
        Fetched {
            stretches: self.stretches,
            records: self.records,
            tally: self.tally,
        }
    }
}

/// `range` in parts of at most `longest` bytes.
fn parts(range: ByteRange, longest: u64) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let part = ByteRange::from_bounds(at, range.end().min(at.saturating_add(longest)))?;
        at = part.end();
        Some(part)
    })
}

/// A length of bytes that are held in memory.
fn memory_len(len: u64) -> usize {
    usize::try_from(len).expect("batches are a few MiB")
}

#[cfg(test)]
mod tests;
