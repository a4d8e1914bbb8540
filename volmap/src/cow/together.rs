//! Origins that are frozen at one instant: first the writers of all of them are held, then each is taken, then writers go on.
//!
//! Between the last gate that was shut and the moment at which all are opened nothing is written to any of them: that is the instant. Whoever
//! opens them before its time, because the deadline passed, opens all, and ends what was made behind them: so whoever opens them at the end
//! knows that they were shut all the time, and nothing is kept for a freeze that cannot be any more.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::cow::deadline::each_by;
use crate::cow::error::CowError;
use crate::cow::freezing::Surveying;
use crate::cow::frozen::Frozen;
use crate::cow::gate::ShutGates;
use crate::cow::image::CowImage;
use crate::cow::origin::Origin;
use crate::frozen::FrozenImage;

/// Why some origins were not frozen.
#[derive(Debug)]
pub struct OneFailed {
    /// Which of them it is about.
    pub nth: usize,
    /// What is the matter with it.
    pub why: CowError,
}

/// Origins whose writers wait. Dropped, they go on, and what was taken is no more.
pub struct HeldOrigins {
    origins: Vec<Arc<Origin>>,
    /// One of each, until it is taken.
    surveying: Vec<Surveying>,
    pub(super) gates: Arc<ShutGates>,
    since: Instant,
    until: Instant,
    within: Duration,
    /// Its end is the end of the watch.
    _watch: Option<Sender<()>>,
}

/// [`Origin::make_ready`] of all, side by side.
pub(super) fn make_all_ready(origins: &[Arc<Origin>]) -> Result<(), OneFailed> {
    let within = origins.iter().map(|origin| origin.options.ready_max).max();
    let within = within.unwrap_or_default();
    let until = Instant::now() + within;
    let ready = move |origin: Arc<Origin>| origin.make_ready_by(until);
    each_by(until, || CowError::NotReady(within), origins.to_vec(), ready).map(drop)
}

impl Drop for HeldOrigins {
    fn drop(&mut self) {
        self.gates.give_up();
    }
}

impl HeldOrigins {
    /// Makes all ready, and then holds the writers of all: new writes wait, and those in flight have ended at the
    /// return. After `within`, writers go on whatever else happens. As long at most it waits for other freezes, and no writer waits with it.
    ///
    /// # Errors
    /// [`CowError::AnotherFreeze`], [`CowError::NotStill`], [`CowError::Busy`], [`CowError::SyncFailed`] and what the storage says. No writer
    /// waits then.
    pub fn hold(origins: &[Arc<Origin>], within: Duration) -> Result<Self, OneFailed> {
        make_all_ready(origins)?;
        // Whoever else freezes some of them at this time comes to them in the same order.
        let mut order: Vec<usize> = (0..origins.len()).collect();
        order.sort_by_key(|&nth| Arc::as_ptr(&origins[nth]));
        // Ahead of the gates: a freeze that hangs may keep other freezes waiting, and nobody else.
        let until = Instant::now() + within;
        let surveying = of_each(&order, |nth| {
            let surveying = origins[nth].surveys.begin(until);
            surveying.ok_or(CowError::AnotherFreeze(within))
        })?;
        let since = Instant::now();
        let until = since + within;
        let shut = |nth: usize| origins[nth].gate.shut(until).ok_or(CowError::NotStill(within));
        let gates = Arc::new(ShutGates::new(of_each(&order, shut)?));
        // Where there is no writer to wait, a set may take what time it takes.
        let watch = match origins {
            [] => None,
            _ => {
                let watch = watch(Arc::clone(&gates), until);
                Some(watch.map_err(|error| OneFailed {
                    nth: 0,
                    why: error.into(),
                })?)
            }
        };
        Ok(Self {
            origins: origins.to_vec(),
            surveying,
            gates,
            since,
            until,
            within,
            _watch: watch,
        })
    }

    /// Since when writers wait.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Makes the frozen images, which answer from now on; the writers still wait. It ends at the deadline, too: whoever is late has the survey of
    /// its origin until it has come to its end, and nothing is left of what it makes.
    ///
    /// # Errors
    /// [`CowError::HeldTooLong`], and what surveys and the storage say.
    pub fn take(&mut self) -> Result<(), OneFailed> {
        let surveying = std::mem::take(&mut self.surveying);
        let parts = self.origins.iter().cloned().zip(surveying).enumerate().collect();
        let (gates, deadline) = (Arc::clone(&self.gates), (self.until, self.within));
        let take = move |(nth, (origin, surveying)): (_, (Arc<Origin>, _))| {
            origin.take(surveying, &gates, nth, deadline)
        };
        each_by(self.until, || CowError::HeldTooLong(self.within), parts, take).map(drop)
    }

    /// Lets writers go on, and gives the frozen images, all of the instant `at`, in the order in which the origins were given. They were
    /// taken before.
    ///
    /// # Errors
    /// [`CowError::HeldTooLong`]: writers went on before. None of the images is left then.
    pub fn release(self, at: SystemTime) -> Result<Vec<Arc<dyn FrozenImage>>, OneFailed> {
        let Some(made) = self.gates.open() else {
            let why = CowError::HeldTooLong(self.within);
            return Err(OneFailed { nth: 0, why });
        };
        let window = self.since.elapsed();
        let image = |(frozen, origin): (Arc<Frozen>, &Arc<Origin>)| {
            origin.note_window(window);
            if let Some(reason) = frozen.why_copies_have_no_place() {
                let frozen = frozen.description.uuid;
                tracing::warn!(%frozen, reason, "the copy area has no places: what is overwritten goes over NBD, until another freeze");
            }
            let image = CowImage::new(frozen, Arc::clone(origin), at);
            tracing::info!(frozen = %image.description().uuid, ?window, "frozen");
            let image: Arc<dyn FrozenImage> = Arc::new(image);
            image
        };
        Ok(made.into_iter().flatten().zip(&self.origins).map(image).collect())
    }
}

/// One thing of each origin, which are come to in this order; in that in which they were given.
fn of_each<T>(
    order: &[usize],
    mut one: impl FnMut(usize) -> Result<T, CowError>,
) -> Result<Vec<T>, OneFailed> {
    let mut all = Vec::with_capacity(order.len());
    for &nth in order {
        all.push((nth, one(nth).map_err(|why| OneFailed { nth, why })?));
    }
    all.sort_by_key(|(nth, _)| *nth);
    Ok(all.into_iter().map(|(_, one)| one).collect())
}

/// Gives the freeze up at the deadline, unless what is returned is dropped before.
fn watch(gates: Arc<ShutGates>, until: Instant) -> io::Result<Sender<()>> {
    let (end, ended) = channel();
    let watch = move || {
        let rest = until.saturating_duration_since(Instant::now());
        if ended.recv_timeout(rest) == Err(RecvTimeoutError::Timeout) && gates.give_up() {
            tracing::warn!("writers were held for as long as they may be, and go on");
        }
    };
    thread::Builder::new().spawn(watch)?;
    Ok(end)
}
