//! The LUNs of a job, and the proof that each is the disk that the host means (design: LUN proof).
//!
//! Two proofs: frozen extents read both ways must be equal, and a nonce that the host just wrote for us must be found on
//! the LUN. Only the second tells a clone from the disk.

use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Mutex, Notify};
use volmap::range::ByteRange;

use super::disk_told::is_another;
use super::limits::LONGEST_DIRECT_READ;
use super::random::Random;
use super::source::{FrozenSource, generations_whole};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::mapped::{DiskPlace, MappedExtent, unconfirmed};
use crate::plan::reads::{Joining, Scatter, gather};
use crate::transport::direct::{Lun, LunBytes, MemoryPool};

/// Places in the volume where a sample is looked for.
const SAMPLES: usize = 24;
/// Samples that are looked for on the LUN itself where those show nothing: several, because one may be moved at that moment.
const SAMPLES_WITH_CONTENT: usize = 4;
/// Bytes of one sample: two blocks or three. A disk that is another, or an old copy, shows at many places rather than in many bytes, and the
/// host pays for both.
const SAMPLE_LEN: u64 = 8 << 10;
/// Samples that are compared at the same time: no more than one connection reads for.
const COMPARED_AT_ONCE: usize = 4;
/// Samples that are searched for at the same time.
const SEARCHED_AT_ONCE: usize = 8;
/// How often a sample is compared that is moved each time.
const SAMPLE_ROUNDS: usize = 3;
/// Searches of the whole volume for samples that prove a LUN. A disk of zeroes, or one that cannot be read, would otherwise
/// cost the host [`SAMPLES`] maps for every batch; what a batch itself reads is compared all the same.
const SEARCHES: u32 = 8;
/// How far behind a random offset an extent is looked for; the second only where there is none so near, for a map of much costs the host
/// more than the sample.
const SAMPLE_WINDOWS: [u64; 2] = [16 << 20, 1 << 30];

/// One LUN and what is known of it.
struct LunSlot {
    lun: Lun,
    state: Mutex<State>,
    /// Searches of the whole volume so far.
    searches: AtomicU32,
    /// An audit found it to differ from what the host reads.
    distrusted: AtomicBool,
}

#[derive(Default)]
struct State {
    proof: Proof,
    /// Why it is not read though its samples are equal.
    refused: Option<String>,
}

/// What is proven of a LUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Proof {
    /// The nonce of a tag was found on it.
    pub tagged: bool,
    /// Samples were equal both ways, and not all of them zero.
    pub sampled: bool,
}

impl Proof {
    /// The word for it in reports and images.
    pub fn name(self) -> &'static str {
        match (self.tagged, self.sampled) {
            (true, _) => "tag",
            (false, true) => "sampled only",
            (false, false) => "not proven",
        }
    }
}

/// The LUNs of a job; the disk number of a place is the position here.
pub struct Luns {
    slots: Vec<LunSlot>,
    random: Random,
    /// The first difference that an audit of this job found.
    difference: OnceLock<Difference>,
    /// There is one.
    differs: Notify,
}

/// Where a LUN and the host gave different bytes.
#[derive(Clone, Copy, Debug)]
struct Difference {
    disk: u16,
    range: ByteRange,
}

impl Luns {
    /// The LUNs of a job in the order of its contexts.
    pub fn new(luns: Vec<Lun>) -> Self {
        let memory = MemoryPool::default();
        let slots = luns
            .into_iter()
            .map(|lun| LunSlot {
                lun: lun.sharing(memory.clone()),
                state: Mutex::default(),
                searches: AtomicU32::new(0),
                distrusted: AtomicBool::new(false),
            })
            .collect();
        Self {
            slots,
            random: Random::of_the_system(),
            difference: OnceLock::new(),
            differs: Notify::new(),
        }
    }

    /// The same, with random choices that can be repeated.
    #[must_use]
    pub fn choosing_by(self, random: Random) -> Self {
        Self { random, ..self }
    }

    /// What random choices are made by.
    pub(super) fn random(&self) -> &Random {
        &self.random
    }

    /// The LUN with a number.
    pub fn lun(&self, disk: u16) -> &Lun {
        &self.slots[usize::from(disk)].lun
    }

    /// The LUNs, with nothing proven of them.
    pub fn into_luns(self) -> Vec<Lun> {
        self.slots.into_iter().map(|slot| slot.lun).collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Every LUN.
    pub fn all(&self) -> impl Iterator<Item = &Lun> {
        self.slots.iter().map(|slot| &slot.lun)
    }

    /// What is proven of every LUN by now.
    pub async fn proofs(&self) -> Vec<Proof> {
        let mut proofs = Vec::new();
        for slot in &self.slots {
            proofs.push(slot.state.lock().await.proof);
        }
        proofs
    }

    /// Notes that a tag's nonce was found on a LUN.
    pub async fn mark_tagged(&self, disk: u16) {
        self.slots[usize::from(disk)].state.lock().await.proof.tagged = true;
    }

    /// Reads from a LUN.
    ///
    /// # Errors
    /// As [`Lun::read`].
    pub async fn read(&self, disk: u16, range: ByteRange) -> std::io::Result<LunBytes> {
        self.lun(disk).read(range).await
    }

    /// Nothing that a LUN gives is to be kept any more.
    pub(crate) fn distrust(&self, disk: u16) {
        self.slots[usize::from(disk)]
            .distrusted
            .store(true, Ordering::SeqCst);
    }

    /// An audit found a LUN to differ from what the host reads: nothing that it gave to this job is to be kept.
    pub(super) fn note_difference(&self, disk: u16, range: ByteRange) -> Error {
        self.distrust(disk);
        let difference = Difference { disk, range };
        // One is reason enough.
        self.difference.set(difference).ok();
        self.differs.notify_one();
        self.error_of(difference)
    }

    /// The error of a job in which an audit found a difference, whatever else ends it.
    pub(super) fn difference(&self) -> Option<Error> {
        self.difference.get().map(|difference| self.error_of(*difference))
    }

    fn error_of(&self, Difference { disk, range }: Difference) -> Error {
        let lun = self.lun(disk);
        let message = format!("audit: {} and the host give different bytes", lun.identity);
        Error::new(ErrorKind::AuditFailed, message)
            .at_path(lun.path())
            .in_range(range)
    }

    /// Ends as soon as an audit has found a difference, with [`Self::difference`].
    pub(super) async fn found_different(&self) -> Error {
        loop {
            if let Some(error) = self.difference() {
                return error;
            }
            self.differs.notified().await;
        }
    }

    /// Whether an audit found a LUN to differ from what the host reads.
    pub fn is_distrusted(&self, disk: u16) -> bool {
        self.slots[usize::from(disk)].distrusted.load(Ordering::SeqCst)
    }

    /// Why `len` bytes at a place may not be read directly, whatever is proven of the LUN.
    pub(super) fn forbids(&self, place: DiskPlace, len: u64) -> Option<String> {
        if self.is_distrusted(place.disk) {
            return Some("an audit found that the LUN and the host give different bytes".into());
        }
        let allowed =
            ByteRange::new(place.offset, len).is_some_and(|range| self.lun(place.disk).allows(range));
        (!allowed).then(|| "it lies outside of the ranges that --lun allows".into())
    }

    /// Whether an extent may be read from a LUN.
    fn is_on(&self, disk: u16, extent: &MappedExtent) -> bool {
        extent
            .place
            .is_some_and(|place| place.disk == disk && self.forbids(place, extent.range.len()).is_none())
    }

    /// Proves that a LUN is the disk that the host means, once; `Err(reason)` inside `Ok` where that cannot be told yet.
    ///
    /// # Errors
    /// [`ErrorKind::WrongLun`]: it certainly is another disk. Errors of the host.
    pub async fn prove<S: FrozenSource>(
        &self,
        disk: u16,
        source: &S,
        hints: &[MappedExtent],
    ) -> Result<std::result::Result<(), String>> {
        let mut state = self.slots[usize::from(disk)].state.lock().await;
        if state.proof.sampled {
            return Ok(Ok(()));
        }
        if let Some(reason) = &state.refused {
            return Ok(Err(reason.clone()));
        }
        // A tag leaves no doubt, and a LUN may be growing.
        let differs = match state.proof.tagged {
            true => None,
            false => self.hold_against(disk, source).await,
        };
        let mut proven = self
            .compare_all(disk, source, self.samples(disk, source, hints).await?)
            .await?;
        if proven == Ok(false) {
            proven = self
                .compare_all(disk, source, self.samples_with_content(disk, hints).await)
                .await?;
        }
        match (proven, differs) {
            (Ok(true), None) => {}
            (proven, Some(reason)) => {
                state.refused = proven.is_ok_and(|told_apart| told_apart).then(|| reason.clone());
                return Ok(Err(reason));
            }
            (Err(reason), None) => return Ok(Err(reason)),
            (Ok(false), None) => return Ok(Err("no sample with content could prove the LUN".into())),
        }
        state.proof.sampled = true;
        tracing::info!(lun = %self.lun(disk).identity, path = %self.lun(disk).path().display(), "samples are equal both ways");
        Ok(Ok(()))
    }

    /// Why a LUN is not the disk that the host tells of, by its size or block size.
    async fn hold_against<S: FrozenSource>(&self, disk: u16, source: &S) -> Option<String> {
        let lun = self.lun(disk);
        is_another(lun, &source.told_of(&lun.identity).await)
    }

    /// Whether a sample was equal both ways that holds something; `Err(reason)` inside `Ok` where the LUN cannot be read.
    async fn compare_all<S: FrozenSource>(
        &self,
        disk: u16,
        source: &S,
        samples: Vec<MappedExtent>,
    ) -> Result<std::result::Result<bool, String>> {
        let mut told_apart = false;
        let compared = stream::iter(samples)
            .map(|sample| async move { (sample, self.compare(disk, source, sample).await) })
            .buffered(COMPARED_AT_ONCE);
        let mut compared = pin!(compared);
        while let Some((sample, compared)) = compared.next().await {
            match compared? {
                Sample::Equal { zero } => told_apart |= !zero,
                Sample::Moved => {}
                Sample::Unreadable(reason) => return Ok(Err(reason)),
                Sample::Different(path) => {
                    let lun = self.lun(disk);
                    let message = format!(
                        "this is not the disk that the host calls {}: a sample differs",
                        lun.identity
                    );
                    return Err(Error::new(ErrorKind::WrongLun, message)
                        .at_path(&lun.paths()[path].path)
                        .in_range(sample.range));
                }
            }
        }
        Ok(Ok(told_apart))
    }

    /// Short frozen extents on the LUN, from all over the volume, and some of the extents that are wanted now.
    async fn samples<S: FrozenSource>(
        &self,
        disk: u16,
        source: &S,
        hints: &[MappedExtent],
    ) -> Result<Vec<MappedExtent>> {
        let on_lun = |e: &&MappedExtent| self.is_on(disk, e);
        let wanted: Vec<&MappedExtent> = hints.iter().filter(on_lun).collect();
        let every = wanted.len().div_ceil(SAMPLES).max(1);
        let mut samples: Vec<MappedExtent> = wanted
            .into_iter()
            .step_by(every)
            .filter_map(|extent| self.random_part(extent))
            .collect();
        // The proof is locked, so nobody counts beside us.
        let searches = self.slots[usize::from(disk)]
            .searches
            .fetch_add(1, Ordering::Relaxed);
        let places = if searches < SEARCHES { SAMPLES } else { 0 };
        let found = stream::iter(0..places)
            .map(|_| self.search(disk, source, self.random.below(source.size())))
            .buffered(SEARCHED_AT_ONCE);
        let found: Vec<Option<MappedExtent>> = found.try_collect().await?;
        samples.extend(found.into_iter().flatten());
        Ok(samples)
    }

    /// A sample of the first extent on the LUN from `start` on.
    async fn search<S: FrozenSource>(
        &self,
        disk: u16,
        source: &S,
        start: u64,
    ) -> Result<Option<MappedExtent>> {
        for window in SAMPLE_WINDOWS {
            let end = source.size().min(start.saturating_add(window));
            let Some(window) = ByteRange::from_bounds(start, end) else {
                continue;
            };
            let map = source.map(window).await?;
            if let Some(extent) = map.iter().find(|extent| self.is_on(disk, extent)) {
                return Ok(self.random_part(extent));
            }
            if end == source.size() {
                break;
            }
        }
        Ok(None)
    }

    /// Samples of the extents that are wanted now that hold something on the LUN. A volume may be zeroes for the most part (a block
    /// device does not tell what of it was ever written), so random samples may show nothing for long; looking for better ones where they
    /// lie costs the host nothing.
    async fn samples_with_content(&self, disk: u16, hints: &[MappedExtent]) -> Vec<MappedExtent> {
        let wanted: Vec<MappedExtent> = hints
            .iter()
            .filter(|extent| self.is_on(disk, extent))
            .copied()
            .collect();
        let mut samples = Vec::new();
        let how = Joining {
            longest: LONGEST_DIRECT_READ,
            long: LONGEST_DIRECT_READ,
            gap: 0,
        };
        for read in gather(&wanted, how, |_, _| false) {
            // What cannot be read is compared, too: that tells why.
            let bytes = self.read(disk, read.range).await.ok();
            let filled = |piece: &Scatter| {
                let skip = usize::try_from(piece.disk_offset - read.range.start()).ok()?;
                let len = usize::try_from(piece.volume.len()).ok()?;
                bytes
                    .as_ref()?
                    .bytes()
                    .get(skip..)?
                    .get(..len)?
                    .iter()
                    .position(|&b| b != 0)
            };
            let sample = read.scatter.iter().find_map(|piece| {
                let at = match &bytes {
                    Some(_) => filled(piece)? as u64,
                    None => 0,
                };
                let start = piece.volume.start() + at;
                let range = ByteRange::new(start, SAMPLE_LEN.min(piece.volume.end() - start))?;
                wanted.iter().find_map(|extent| extent.clipped(range))
            });
            samples.extend(sample);
            if samples.len() == SAMPLES_WITH_CONTENT || bytes.is_none() {
                break;
            }
        }
        samples
    }

    /// A random stretch of at most [`SAMPLE_LEN`] bytes of an extent.
    fn random_part(&self, extent: &MappedExtent) -> Option<MappedExtent> {
        let len = extent.range.len().min(SAMPLE_LEN);
        let start = extent.range.start() + self.random.below(extent.range.len() - len + 1);
        extent.clipped(ByteRange::new(start, len)?)
    }

    /// Compares a sample; where it moved meanwhile, what is there now: a writer that is everywhere at once must not keep a LUN
    /// from being proven.
    async fn compare<S: FrozenSource>(&self, disk: u16, source: &S, sample: MappedExtent) -> Result<Sample> {
        let mut now = Some(sample);
        for _ in 0..SAMPLE_ROUNDS {
            let Some(sample) = now else { break };
            match self.compare_once(disk, source, sample).await? {
                Sample::Moved => {}
                compared => return Ok(compared),
            }
            let map = source.map(sample.range).await?;
            let on_lun = map.iter().find(|extent| self.is_on(disk, extent));
            now = on_lun.and_then(|extent| extent.clipped(sample.range));
        }
        Ok(Sample::Moved)
    }

    async fn compare_once<S: FrozenSource>(
        &self,
        disk: u16,
        source: &S,
        sample: MappedExtent,
    ) -> Result<Sample> {
        let Some(on_disk) = sample
            .place
            .and_then(|p| ByteRange::new(p.offset, sample.range.len()))
        else {
            return Ok(Sample::Moved);
        };
        // What may not be read tells nothing of the disk.
        if !self.lun(disk).allows(on_disk) {
            return Ok(Sample::Moved);
        }
        let mut by_path = Vec::new();
        let mut failed = Vec::new();
        for (number, read) in self.lun(disk).read_by_each(on_disk).await {
            match read {
                Ok(direct) => by_path.push((number, direct)),
                // A LUN that ends before its extents do is another disk.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(Sample::Different(number));
                }
                Err(error) => failed.push((number, error)),
            }
        }
        if by_path.is_empty() {
            let why = failed
                .pop()
                .map_or("no path is left".into(), |(_, error)| error.to_string());
            return Ok(Sample::Unreadable(format!("the LUN cannot be read: {why}")));
        }
        for (number, error) in failed {
            // The others will be proven without it, and it would be read by once they fail.
            self.lun(disk).paths()[number].give_up(&format!("it could not be proven to be the LUN: {error}"));
        }
        let through_host = match source.read(sample.range).await {
            // There is nothing to compare with, and nothing against the disk.
            Err(error) if error.kind() == ErrorKind::HostCannotRead => return Ok(Sample::Moved),
            read => read?,
        };
        let different = by_path
            .iter()
            .find(|(_, direct)| direct.bytes() != &through_host[..]);
        let Some((number, _)) = different else {
            // Nothing of it is kept, so no generation has to confirm it: equal bytes tell of the disk, wherever they lie by now.
            return Ok(Sample::Equal {
                zero: through_host.iter().all(|&b| b == 0),
            });
        };
        let now = generations_whole(source, sample.range).await?;
        Ok(if unconfirmed(&[sample], &now).is_empty() {
            Sample::Different(*number)
        } else {
            Sample::Moved
        })
    }
}

enum Sample {
    Equal {
        zero: bool,
    },
    /// By the path with this number.
    Different(usize),
    Moved,
    Unreadable(String),
}

#[cfg(test)]
mod tests {
    use super::super::source::map_whole;
    use super::super::world::{Act, Point, UNIT, World};
    use super::*;

    #[tokio::test]
    async fn a_sample_that_moves_is_compared_where_it_is_then() {
        let world = World::new(&[false; 8], 100, Vec::new());
        let luns = world.luns();
        let map = map_whole(&world, ByteRange::new(0, world.size()).unwrap()).await;
        let map = map.unwrap();
        for (unit, moves, proves) in [(1, SAMPLE_ROUNDS - 1, true), (2, SAMPLE_ROUNDS, false)] {
            let sample = map[0].clipped(ByteRange::new(unit * UNIT, UNIT).unwrap());
            let sample = sample.unwrap();
            for _ in 0..moves {
                world.let_in(Point::BeforeRead, Act::Move(unit));
            }
            let compared = luns.compare_all(0, &world, vec![sample]).await;
            assert_eq!(compared.unwrap(), Ok(proves), "{moves}");
        }
    }

    /// It is there, and fails.
    struct Failing(u64);

    impl crate::transport::direct::LunReader for Failing {
        fn size(&self) -> u64 {
            self.0
        }

        fn block_size(&self) -> u64 {
            128
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(nix::libc::EIO))
        }
    }

    /// It may be another disk, by which would be read as soon as the others fail.
    #[tokio::test]
    async fn a_path_that_fails_while_the_lun_is_proven_is_given_up() {
        let world = World::new(&[false; 8], 100, Vec::new());
        let mut luns = world.luns();
        let lun = &mut luns.slots[0].lun;
        lun.also_by("other".into(), Box::new(Failing(lun.size())))
            .unwrap();
        let map = map_whole(&world, ByteRange::new(0, world.size()).unwrap()).await;
        let proven = luns.prove(0, &world, &map.unwrap()).await;
        assert_eq!(proven.unwrap(), Ok(()));
        let given_up: Vec<bool> = luns
            .lun(0)
            .paths()
            .iter()
            .map(|path| path.given_up().is_some())
            .collect();
        assert_eq!(given_up, [false, true]);
    }

    /// What is refused here says nothing against the disk.
    #[tokio::test]
    async fn a_sample_that_may_not_be_read_proves_nothing() {
        let world = World::new(&[false; 8], 100, Vec::new());
        let mut luns = world.luns();
        luns.slots[0].lun.allow(&[ByteRange::new(0, UNIT).unwrap()]);
        let map = map_whole(&world, ByteRange::new(0, world.size()).unwrap()).await;
        let outside = map.unwrap()[0]
            .clipped(ByteRange::new(UNIT, UNIT).unwrap())
            .unwrap();
        let compared = luns.compare_all(0, &world, vec![outside]).await;
        assert_eq!(compared.unwrap(), Ok(false));
    }
}
