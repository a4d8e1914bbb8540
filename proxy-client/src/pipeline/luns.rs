//! The LUNs of a job, and the proof that each is the disk that the host means (design: LUN proof).
//!
//! Two proofs: frozen extents read both ways must be equal, and a nonce that the host just wrote for us must be found on
//! the LUN. Only the second tells a clone from the disk.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Mutex, Semaphore};
use volmap::range::ByteRange;

use super::limits::DIRECT_READS_IN_FLIGHT;
use super::random::Random;
use super::source::{FrozenSource, generations_whole};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::mapped::{MappedExtent, unconfirmed};
use crate::transport::direct::{Lun, LunBytes};

/// Places in the volume where a sample is looked for.
const SAMPLES: usize = 24;
/// Bytes of one sample.
const SAMPLE_LEN: u64 = 16 << 10;
/// Searches of the whole volume for samples that prove a LUN. A disk of zeroes, or one that cannot be read, would otherwise
/// cost the host [`SAMPLES`] maps for every batch; what a batch itself reads is compared all the same.
const SEARCHES: u32 = 8;
/// How far behind a random offset an extent is looked for.
const SAMPLE_WINDOW: u64 = 1 << 30;

/// One LUN and what is known of it.
struct LunSlot {
    lun: Lun,
    state: Mutex<Proof>,
    /// Searches of the whole volume so far.
    searches: AtomicU32,
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
    in_flight: Semaphore,
    random: Random,
}

impl Luns {
    /// The LUNs of a job in the order of its contexts.
    pub fn new(luns: Vec<Lun>) -> Self {
        let slots = luns
            .into_iter()
            .map(|lun| LunSlot {
                lun,
                state: Mutex::default(),
                searches: AtomicU32::new(0),
            })
            .collect();
        Self {
            slots,
            in_flight: Semaphore::new(DIRECT_READS_IN_FLIGHT),
            random: Random::of_the_system(),
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

    /// Every LUN.
    pub fn all(&self) -> impl Iterator<Item = &Lun> {
        self.slots.iter().map(|slot| &slot.lun)
    }

    /// What is proven of every LUN by now.
    pub async fn proofs(&self) -> Vec<Proof> {
        let mut proofs = Vec::new();
        for slot in &self.slots {
            proofs.push(*slot.state.lock().await);
        }
        proofs
    }

    /// Notes that a tag's nonce was found on a LUN.
    pub async fn mark_tagged(&self, disk: u16) {
        self.slots[usize::from(disk)].state.lock().await.tagged = true;
    }

    /// Reads from a LUN; reads in flight are bounded over all LUNs.
    ///
    /// # Errors
    /// What the system says of the read.
    pub async fn read(&self, disk: u16, range: ByteRange) -> std::io::Result<LunBytes> {
        let _permit = self.in_flight.acquire().await.map_err(std::io::Error::other)?;
        self.lun(disk).read(range).await
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
        let mut proof = self.slots[usize::from(disk)].state.lock().await;
        if proof.sampled {
            return Ok(Ok(()));
        }
        let mut told_apart = false;
        for sample in self.samples(disk, source, hints).await? {
            match self.compare(disk, source, sample).await? {
                Sample::Equal { zero } => told_apart |= !zero,
                Sample::Moved => {}
                Sample::Unreadable(reason) => return Ok(Err(reason)),
                Sample::Different => {
                    let lun = self.lun(disk);
                    let message = format!(
                        "this is not the disk that the host calls {}: a sample differs",
                        lun.identity
                    );
                    return Err(Error::new(ErrorKind::WrongLun, message)
                        .at_path(&lun.path)
                        .in_range(sample.range));
                }
            }
        }
        if !told_apart {
            return Ok(Err("no sample with content could prove the LUN".into()));
        }
        proof.sampled = true;
        tracing::info!(lun = %self.lun(disk).identity, path = %self.lun(disk).path.display(), "samples are equal both ways");
        Ok(Ok(()))
    }

    /// Short frozen extents on the LUN, from all over the volume, and some of the extents that are wanted now.
    async fn samples<S: FrozenSource>(
        &self,
        disk: u16,
        source: &S,
        hints: &[MappedExtent],
    ) -> Result<Vec<MappedExtent>> {
        let on_lun = |e: &&MappedExtent| e.place.is_some_and(|p| p.disk == disk);
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
        for _ in 0..(if searches < SEARCHES { SAMPLES } else { 0 }) {
            let start = self.random.below(source.size());
            let Some(window) =
                ByteRange::from_bounds(start, source.size().min(start.saturating_add(SAMPLE_WINDOW)))
            else {
                continue;
            };
            samples.extend(
                source
                    .map(window)
                    .await?
                    .iter()
                    .find(on_lun)
                    .and_then(|extent| self.random_part(extent)),
            );
        }
        Ok(samples)
    }

    /// A random stretch of at most [`SAMPLE_LEN`] bytes of an extent.
    fn random_part(&self, extent: &MappedExtent) -> Option<MappedExtent> {
        let len = extent.range.len().min(SAMPLE_LEN);
        let start = extent.range.start() + self.random.below(extent.range.len() - len + 1);
        extent.clipped(ByteRange::new(start, len)?)
    }

    async fn compare<S: FrozenSource>(&self, disk: u16, source: &S, sample: MappedExtent) -> Result<Sample> {
        let Some(on_disk) = sample
            .place
            .and_then(|p| ByteRange::new(p.offset, sample.range.len()))
        else {
            return Ok(Sample::Moved);
        };
        let direct = match self.read(disk, on_disk).await {
            Ok(direct) => direct,
            // A LUN that ends before its extents do is another disk.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Sample::Different),
            Err(error) => return Ok(Sample::Unreadable(format!("the LUN cannot be read: {error}"))),
        };
        let through_host = source.read(sample.range).await?;
        let now = generations_whole(source, sample.range).await?;
        if !unconfirmed(&[sample], &now).is_empty() {
            return Ok(Sample::Moved);
        }
        Ok(if direct.bytes() == &through_host[..] {
            Sample::Equal {
                zero: through_host.iter().all(|&b| b == 0),
            }
        } else {
            Sample::Different
        })
    }
}

enum Sample {
    Equal { zero: bool },
    Different,
    Moved,
    Unreadable(String),
}
