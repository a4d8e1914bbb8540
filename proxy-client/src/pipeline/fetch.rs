//! One batch: read, validate, read again what moved (laws P0 to P4). Nothing leaves here that was not confirmed.

mod assembly;
mod audit;
mod salvage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use futures_util::stream::{self, StreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};
use volmap::generation::Generation;
use volmap::map::Content;
use volmap::range::ByteRange;

use super::confirmations::Confirmations;
use super::limits::{
    BATCHES_READ_AT_ONCE, DIRECT_READS_QUEUED, DIRECT_ROUNDS, GAP_READ_ALONG, LONG_DIRECT_READ,
    LONGEST_DIRECT_READ, LONGEST_NBD_READ, NBD_READS_IN_FLIGHT, SEGMENT, UNREADABLE_AT_FIRST, UNREADABLE_MAX,
};
use super::luns::Luns;
use super::source::{FrozenSource, generations_whole, map_whole};
use super::tally::Tally;
use super::throttle::Throttle;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{BLOCK, Kind, Receipt, Record, Transport};
use crate::plan::batch::Batch;
use crate::plan::mapped::{MappedExtent, outdated, unconfirmed};
use crate::plan::reads::{DirectRead, Joining, gather};
use crate::transport::direct::LunBytes;
use assembly::Assembly;
pub use assembly::{FetchedStretch, Plain};
use salvage::{Salvaged, salvage};

/// How pieces of a batch are joined to reads.
const JOINING: Joining = Joining {
    longest: LONGEST_DIRECT_READ,
    long: LONG_DIRECT_READ,
    gap: GAP_READ_ALONG,
};

/// How the batches of a job are fetched.
#[derive(Clone, Debug, Default)]
pub struct FetchPolicy {
    /// Share of direct reads, in percent, that are read through the host as well and compared.
    pub audit_percent: f64,
    /// Data that cannot be read directly ends the job.
    pub no_fallback: bool,
    /// How fast, changed while it runs.
    pub throttle: Throttle,
    /// Bytes of the image that earlier runs of the job found nobody to read.
    pub unreadable: u64,
    /// Earlier runs of the job could read something.
    pub has_read: bool,
}

impl FetchPolicy {
    /// The same, for a job of which that much is done.
    #[must_use]
    pub(super) fn going_on_from(self, done: &Tally) -> Self {
        Self {
            unreadable: done.unreadable.bytes,
            has_read: done.bytes_direct + done.bytes_nbd > 0,
            ..self
        }
    }
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

/// What all batches of a job share.
pub(super) struct Fetcher<'a, S> {
    source: &'a S,
    luns: &'a Luns,
    policy: FetchPolicy,
    pub(super) confirmations: Confirmations,
    /// Who may read.
    turns: Semaphore,
    unreadable: AtomicU64,
    /// Somebody could read something.
    has_read: AtomicBool,
}

impl<'a, S: FrozenSource> Fetcher<'a, S> {
    pub(super) fn new(source: &'a S, luns: &'a Luns, policy: FetchPolicy) -> Self {
        Self {
            source,
            luns,
            confirmations: Confirmations::default(),
            turns: Semaphore::new(BATCHES_READ_AT_ONCE),
            unreadable: AtomicU64::new(policy.unreadable),
            has_read: AtomicBool::new(policy.has_read),
            policy,
        }
    }

    /// Fetches a batch when its turn has come.
    ///
    /// # Errors
    /// The frozen image is gone, the host is lost, a LUN is the wrong disk, a policy is missed, or an audit found a difference.
    pub(super) async fn fetch(&self, batch: Arc<Batch>) -> Result<Fetched> {
        // Never closed; without a turn it would only be read beside others.
        let turn = self.turns.acquire().await.ok();
        let stale = self.confirmations.begin(&batch);
        self.fetch_now(&batch, stale, turn).await
    }

    /// Fetches a batch. `stale` says that the map was learnt before the latest confirmation, or while the host told no locations, so that
    /// it is confirmed before it is read by (law P0). The turn is given back once everything was read for the first time.
    pub(super) async fn fetch_now(
        &self,
        batch: &Batch,
        stale: bool,
        mut turn: Option<SemaphorePermit<'_>>,
    ) -> Result<Fetched> {
        let mut work = Work {
            fetcher: self,
            batch,
            assembly: Assembly::new(&batch.stretches, SEGMENT),
            unreadable: Vec::new(),
            records: batch.same.iter().copied().map(same_record).collect(),
            tally: Tally {
                bytes_same: batch.same.iter().map(|gap| gap.len()).sum(),
                ..Tally::default()
            },
        };
        let mut todo: Vec<Piece> = batch.extents.iter().copied().map(Piece::new).collect();
        let is_read_directly =
            |e: &MappedExtent| e.generation.is_direct() || e.is_withheld() && !self.luns.is_empty();
        if stale && batch.extents.iter().any(is_read_directly) {
            let now = generations_whole(self.source, batch.range).await?;
            let moved = outdated(&batch.extents, &now);
            todo = work.ask_again(todo, &moved, false).await?;
        }
        let mut round = 1;
        while !todo.is_empty() {
            work.make_nbd_what_must_be(&mut todo, round).await?;
            todo = work.read(todo).await?;
            drop(turn.take());
            let moved = work.validate(&todo).await?;
            let (confirmed, again) = split(todo, &moved);
            work.keep(confirmed, round).await?;
            todo = work.ask_again(again, &moved, true).await?;
            round += 1;
        }
        Ok(work.finish())
    }
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
    fn new(extent: MappedExtent) -> Self {
        Self {
            extent,
            moved: false,
            reason: None,
        }
    }

    fn is_zero(&self) -> bool {
        self.extent.content != Content::Data
    }

    fn is_direct(&self) -> bool {
        self.extent.place.is_some() && self.extent.generation.is_direct() && self.reason.is_none()
    }
}

/// Cuts pieces along sorted `ranges` into those outside and those inside.
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

/// What a read brought.
enum Got {
    Direct(DirectRead, std::io::Result<LunBytes>),
    Host(Result<Salvaged>),
}

struct Work<'a, S> {
    fetcher: &'a Fetcher<'a, S>,
    batch: &'a Batch,
    assembly: Assembly,
    /// What neither LUN nor host could read.
    unreadable: Vec<ByteRange>,
    records: Vec<Record>,
    tally: Tally,
}

impl<'a, S: FrozenSource> Work<'a, S> {
    /// Law P4: the mapping of what moved, and of nothing else. `read` says that bytes were thrown away for it.
    async fn ask_again(&mut self, pieces: Vec<Piece>, moved: &[ByteRange], read: bool) -> Result<Vec<Piece>> {
        let (mut kept, lost) = split(pieces, moved);
        // Pieces that moved together are asked for together.
        let mut map: Vec<MappedExtent> = Vec::new();
        for range in moved {
            map.extend(map_whole(self.fetcher.source, *range).await?);
        }
        for piece in lost {
            let thrown_away = read && piece.is_direct();
            if thrown_away {
                // What was not confirmed leaves no trace: its range may turn out to be zero.
                self.assembly.clear(piece.extent.range);
                if !piece.moved {
                    self.tally.bytes_moved += piece.extent.range.len();
                }
            }
            let first = map.partition_point(|e| e.range.end() <= piece.extent.range.start());
            let now = map[first..].iter().map_while(|e| e.clipped(piece.extent.range));
            for extent in now {
                if piece.is_zero()
                    && extent.content == Content::Data
                    && self.insist_on_zero(extent.range).await?
                {
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
                        moved: piece.moved || thrown_away,
                        ..Piece::new(extent)
                    });
                }
            }
        }
        kept.sort_by_key(|piece| piece.extent.range.start());
        Ok(kept)
    }

    /// A range that was published as zero, and no longer is, must still read as zeroes: its frozen bytes never change. Whether that
    /// could be seen: what the host cannot read is data like any other.
    async fn insist_on_zero(&self, range: ByteRange) -> Result<bool> {
        for part in parts(range, LONGEST_NBD_READ) {
            let _under_way = self.fetcher.policy.throttle.begin(part.len()).await;
            let bytes = match self.fetcher.source.read(part).await {
                Err(error) if error.kind() == ErrorKind::HostCannotRead => return Ok(false),
                read => read?,
            };
            if bytes.iter().any(|&byte| byte != 0) {
                let message = "the host published zeroes for a range that holds data";
                return Err(Error::new(ErrorKind::HostMisbehaved, message).in_range(part));
            }
        }
        Ok(true)
    }

    /// Notes a reason on every piece of data that is not to be read directly in this round. Zeroes whose mapping does not settle
    /// are looked at through the host as well (law P4), and need no confirmation then.
    async fn make_nbd_what_must_be(&self, todo: &mut [Piece], round: u8) -> Result<()> {
        if round > DIRECT_ROUNDS {
            let unsettled = |p: &&mut Piece| p.is_zero() && p.extent.generation.is_direct();
            for piece in todo.iter_mut().filter(unsettled) {
                if !self.insist_on_zero(piece.extent.range).await? {
                    piece.extent.content = Content::Data;
                }
                piece.extent.generation = Generation::NEVER_DIRECT;
                piece.extent.place = None;
            }
        }
        let extents: Vec<MappedExtent> = todo.iter().map(|p| p.extent).collect();
        // Asked once for a LUN: what cannot be proven now would cost a search for samples for every piece.
        let mut verdicts: BTreeMap<u16, Option<String>> = BTreeMap::new();
        let (luns, source) = (self.fetcher.luns, self.fetcher.source);
        for piece in todo.iter_mut().filter(|p| !p.is_zero() && p.reason.is_none()) {
            piece.reason = match piece.extent.place {
                _ if round > DIRECT_ROUNDS => Some(format!("moved again in each of {DIRECT_ROUNDS} rounds")),
                Some(place) => match luns.forbids(place, piece.extent.range.len()) {
                    Some(reason) => Some(reason),
                    None => match verdicts.get(&place.disk) {
                        Some(verdict) => verdict.clone(),
                        None => {
                            let verdict = luns.prove(place.disk, source, &extents).await?.err();
                            verdicts.entry(place.disk).or_insert(verdict).clone()
                        }
                    },
                },
                None if !piece.extent.generation.is_direct() => {
                    Some("the host gives no location for it".into())
                }
                None => Some("it lies on a disk that no --lun names".into()),
            };
        }
        Ok(())
    }

    /// Law P2, and what has to come over NBD beside it. A LUN that cannot be read sends the pieces to NBD, with the reason.
    async fn read(&mut self, todo: Vec<Piece>) -> Result<Vec<Piece>> {
        let mut failed = self.read_all(&todo).await?;
        if failed.is_empty() {
            return Ok(todo);
        }
        failed.sort_unstable_by_key(|(range, _)| range.start());
        let mut joined: Vec<(ByteRange, String)> = Vec::new();
        for (range, reason) in failed {
            match joined.last_mut() {
                // A byte of the volume is in one read only, so that these touch at most.
                Some((last, kept)) if last.end() == range.start() && *kept == reason => {
                    *last = ByteRange::from_bounds(last.start(), range.end()).unwrap_or(*last);
                }
                _ => joined.push((range, reason)),
            }
        }
        let ranges: Vec<ByteRange> = joined.iter().map(|(range, _)| *range).collect();
        let (mut todo, mut through_host) = split(todo, &ranges);
        for piece in through_host.iter_mut().filter(|p| p.is_direct()) {
            let index = ranges.partition_point(|r| r.end() <= piece.extent.range.start());
            piece.reason = Some(joined[index].1.clone());
        }
        self.read_all(&through_host).await?;
        todo.append(&mut through_host);
        todo.sort_by_key(|piece| piece.extent.range.start());
        Ok(todo)
    }

    /// Reads all data of `todo`, each piece its way. Which parts of the volume no LUN gave that should have, and why.
    async fn read_all(&mut self, todo: &[Piece]) -> Result<Vec<(ByteRange, String)>> {
        // Not borrowed from the work, which is changed while reads come in.
        let fetcher = self.fetcher;
        let (source, luns, throttle) = (fetcher.source, fetcher.luns, &fetcher.policy.throttle);
        let cut = |piece: &Piece| self.assembly.cut_extent(piece.extent).collect::<Vec<_>>();
        let wanted: Vec<MappedExtent> = todo.iter().filter(|p| p.is_direct()).flat_map(cut).collect();
        let reads = gather(&wanted, JOINING, |disk, range| luns.lun(disk).allows(range));
        let direct = stream::iter(reads)
            .map(|read| async move {
                let _under_way = throttle.begin(read.range.len()).await;
                let result = luns.read(read.disk, read.range).await;
                Got::Direct(read, result)
            })
            .buffer_unordered(DIRECT_READS_QUEUED);
        let mut wanted = Vec::new();
        for piece in todo.iter().filter(|p| !p.is_zero() && !p.is_direct()) {
            self.fall_back(piece)?;
            wanted.extend(
                self.assembly
                    .cut(piece.extent.range)
                    .flat_map(|range| parts(range, LONGEST_NBD_READ)),
            );
        }
        let through_host = stream::iter(wanted)
            .map(|range| async move {
                let _under_way = throttle.begin(range.len()).await;
                Got::Host(salvage(source, range).await)
            })
            .buffer_unordered(NBD_READS_IN_FLIGHT);
        let mut failed = Vec::new();
        let mut got = std::pin::pin!(stream::select(direct, through_host));
        while let Some(got) = got.next().await {
            match got {
                Got::Direct(read, Ok(bytes)) => {
                    fetcher.has_read.store(true, Ordering::Relaxed);
                    self.place(&read, bytes);
                }
                Got::Direct(read, Err(error)) => {
                    let reason = format!("the LUN could not be read: {error}");
                    failed.extend(read.scatter.iter().map(|piece| (piece.volume, reason.clone())));
                }
                Got::Host(salvaged) => {
                    let salvaged = salvaged?;
                    if salvaged.iter().any(|(_, bytes)| bytes.is_some()) {
                        fetcher.has_read.store(true, Ordering::Relaxed);
                    }
                    for (range, bytes) in salvaged {
                        match bytes {
                            Some(bytes) => self.assembly.take(range, Plain::Host(bytes)),
                            None => self.give_up(range)?,
                        }
                    }
                }
            }
        }
        Ok(failed)
    }

    /// Data that is not read directly, where that is allowed.
    fn fall_back(&self, piece: &Piece) -> Result<()> {
        if !self.fetcher.policy.no_fallback {
            return Ok(());
        }
        let message = format!(
            "--no-fallback: not everything can be read directly, because {}",
            piece.reason.as_deref().unwrap_or("it is not mapped")
        );
        Err(Error::new(ErrorKind::PolicyMissed, message).in_range(piece.extent.range))
    }

    /// Nobody can read these bytes: zeroes stand in for them, and the record says so.
    fn give_up(&mut self, range: ByteRange) -> Result<()> {
        let sum = self.fetcher.unreadable.fetch_add(range.len(), Ordering::Relaxed) + range.len();
        if sum > UNREADABLE_AT_FIRST && !self.fetcher.has_read.load(Ordering::Relaxed) {
            let message = "nothing at all could be read";
            return Err(Error::new(ErrorKind::HostCannotRead, message).in_range(range));
        }
        if sum > UNREADABLE_MAX {
            let message = format!(
                "more than {} MiB cannot be read: this is no backup any more",
                UNREADABLE_MAX >> 20
            );
            return Err(Error::new(ErrorKind::HostCannotRead, message).in_range(range));
        }
        self.assembly.clear(range);
        self.unreadable.push(range);
        Ok(())
    }

    fn place(&mut self, read: &DirectRead, bytes: LunBytes) {
        // A copy costs less than keeping the memory of a much longer read.
        if let [piece] = &read.scatter[..]
            && piece.volume.len() == read.range.len()
            && bytes.fills_its_memory()
        {
            return self.assembly.take(piece.volume, Plain::Lun(bytes));
        }
        for piece in &read.scatter {
            let skip = memory_len(piece.disk_offset - read.range.start());
            let part = &bytes.bytes()[skip..][..memory_len(piece.volume.len())];
            self.assembly.copy(piece.volume, part);
        }
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
        let question = self.fetcher.confirmations.ask(span);
        let asked = Instant::now();
        let now = generations_whole(self.fetcher.source, question.span).await?;
        self.fetcher.policy.throttle.note_latency(asked.elapsed());
        self.fetcher.confirmations.answered(&question, &now);
        self.tally.validations += 1;
        Ok(unconfirmed(&claims, &now))
    }

    /// Records confirmed pieces, and audits some of them.
    async fn keep(&mut self, pieces: Vec<Piece>, round: u8) -> Result<()> {
        self.unreadable.sort_unstable_by_key(|range| range.start());
        let lost = std::mem::take(&mut self.unreadable);
        let (direct_or_zero, through_host): (Vec<Piece>, Vec<Piece>) =
            pieces.into_iter().partition(|p| p.is_zero() || p.is_direct());
        let (readable, unreadable) = split(through_host, &lost);
        for piece in &unreadable {
            self.record(piece, Kind::Unreadable, Receipt::unread(piece.extent.generation));
        }
        for piece in direct_or_zero.iter().chain(&readable) {
            let read = |transport, lun| Receipt {
                transport,
                lun,
                generation: piece.extent.generation,
                rounds: round - 1,
            };
            let unread = Receipt::unread(piece.extent.generation);
            let (kind, receipt) = match (piece.extent.content, piece.extent.place) {
                (Content::Zero, _) => (Kind::Zero, unread),
                (Content::Hole, _) => (Kind::Hole, unread),
                (Content::Data, Some(place)) if piece.is_direct() => {
                    (Kind::Data, read(Transport::Direct, place.disk))
                }
                (Content::Data, _) => (Kind::Data, read(Transport::Nbd, 0)),
            };
            self.record(piece, kind, receipt);
        }
        self.audit(direct_or_zero.iter().filter(|p| p.is_direct())).await
    }

    fn record(&mut self, piece: &Piece, kind: Kind, receipt: Receipt) {
        let same: Vec<ByteRange> = match kind {
            Kind::Data => self.batch.same_blocks_in(piece.extent.range, BLOCK).collect(),
            _ => Vec::new(),
        };
        self.records.extend(same.iter().copied().map(same_record));
        self.tally.bytes_same += same.iter().map(|same| same.len()).sum::<u64>();
        for Piece { extent, .. } in split(vec![piece.clone()], &same).0 {
            let range = extent.range;
            self.tally.count(kind, receipt, range, piece.moved);
            if receipt.transport == Transport::Nbd {
                self.tally
                    .add_reason(piece.reason.as_deref().unwrap_or("unknown"), range.len());
            }
            self.records.push(Record { range, kind, receipt });
        }
    }

    fn finish(mut self) -> Fetched {
        self.records.sort_by_key(|record| record.range.start());
        for record in self
            .records
            .iter()
            .filter(|record| record.kind == Kind::Unreadable)
        {
            self.tally.unreadable.add(record.range);
        }
        self.records.dedup_by(|next, kept| {
            let joins = kept.range.end() == next.range.start()
                && (kept.kind, kept.receipt) == (next.kind, next.receipt);
            if joins && let Some(joined) = ByteRange::from_bounds(kept.range.start(), next.range.end()) {
                kept.range = joined;
            }
            joins
        });
        Fetched {
            stretches: self.assembly.into_stretches(),
            records: self.records,
            tally: self.tally,
        }
    }
}

/// Bytes that are as in the parent image.
pub(super) fn same_record(range: ByteRange) -> Record {
    Record {
        range,
        kind: Kind::Same,
        receipt: Receipt::unread(Generation::NEVER_DIRECT),
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
