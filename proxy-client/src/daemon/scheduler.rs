//! Which job runs when: in the order in which they came, as many at a time as the configuration allows, for each LUN too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_export::proxy::{JobFailure, JobLimits, JobReport, JobState};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::clock::now;
use super::config::DaemonConfig;
use super::limits::{ATTEMPTS_MAX, RETRY_PAUSE};
use super::live::Live;
use super::metrics::Metrics;
use super::order::{Order, Orders};
use super::passing::may_pass;
use super::queue::Queue;
use super::repository::Repository;
use super::worker::{Finished, Worker};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{Throttle, ThrottleLimits};

/// A job under way.
struct Running {
    luns: Vec<String>,
    live: Arc<Live>,
    order: watch::Sender<Order>,
    throttle: Throttle,
}

/// What limits that somebody set are to the pipeline.
fn throttle_limits(limits: JobLimits) -> ThrottleLimits {
    ThrottleLimits {
        bytes_per_second: limits.rate,
        reads_in_flight: limits.reads.map(Into::into),
        host_latency: limits
            .latency_ms
            .map(|milliseconds| Duration::from_millis(milliseconds.get())),
    }
}

#[cfg(test)]
mod tests;

/// Begins jobs, and sees to their ends.
pub(super) struct Scheduler {
    pub(super) config: Arc<DaemonConfig>,
    pub(super) queue: Arc<Queue>,
    pub(super) repository: Arc<Repository>,
    pub(super) metrics: Arc<Metrics>,
    running: Mutex<BTreeMap<u64, Running>>,
    /// Jobs that are not to be begun before their time.
    not_before: Mutex<BTreeMap<u64, Instant>>,
    changed: Notify,
}

impl Scheduler {
    /// For the jobs of a queue. What ran when the daemon last ended waits again.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub(super) fn new(
        config: Arc<DaemonConfig>,
        queue: Arc<Queue>,
        repository: Arc<Repository>,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::new());
        for job in queue.jobs() {
            metrics.remember(&job);
            if !matches!(job.state, JobState::Running | JobState::Verifying) {
                continue;
            }
            let image = repository.place(job.image.as_deref().unwrap_or_default());
            let committed = image.is_ok_and(|image| image.exists());
            let note = if committed {
                "the daemon ended when the image was written: only what came after that is done again"
            } else {
                "the daemon ended in the midst of it"
            };
            tracing::warn!(
                job = job.id,
                host = job.request.host,
                volume = job.request.volume,
                "{note}"
            );
            metrics.began_again();
            queue.update(job.id, |job| {
                job.state = JobState::Queued;
                job.notes.push(note.to_owned());
            })?;
        }
        Ok(Self {
            config,
            queue,
            repository,
            metrics,
            running: Mutex::default(),
            not_before: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_before(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.not_before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again at what can begin.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// A job with its progress.
    pub(super) fn with_progress(&self, mut job: JobReport) -> JobReport {
        if !job.state.is_final() {
            job.progress = self.running().get(&job.id).map(|running| running.live.now());
        }
        job
    }

    /// How many jobs read a LUN.
    pub(super) fn readers_of(&self, lun: &str) -> usize {
        let running = self.running();
        running
            .values()
            .filter(|job| job.luns.iter().any(|name| name == lun))
            .count()
    }

    /// How many jobs run.
    pub(super) fn running_count(&self) -> usize {
        self.running().len()
    }

    /// Ends a job, whatever it does.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub(super) fn cancel(&self, id: u64) -> Result<()> {
        // First on the disk: whatever ends the daemon now, the next one does not run it.
        let job = self.queue.update(id, |job| {
            if !job.state.is_final() {
                job.cancel_wanted = true;
            }
        })?;
        if job.state == JobState::Queued {
            // It cannot begin any more.
            return self.abandon(&job);
        }
        if let Some(running) = self.running().get(&id) {
            running.order.send_replace(Order::Cancel);
        }
        Ok(())
    }

    /// Sets how fast a job may read, now and whenever it is begun again.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub(super) fn limit(&self, id: u64, limits: JobLimits) -> Result<JobReport> {
        let job = self.queue.update(id, |job| job.limits = limits)?;
        if let Some(running) = self.running().get(&id) {
            // What is there now: somebody else may have set others, and come here before us.
            let newest = self.queue.job(id).map_or(limits, |job| job.limits);
            running.throttle.set(throttle_limits(newest));
        }
        tracing::info!(job = id, ?limits, "limits were set");
        Ok(job)
    }

    /// Runs jobs until `stopping`; then those under way have the time of the configuration, and are left to the next start.
    pub(super) async fn run(self: Arc<Self>, stopping: impl Future<Output = ()>) {
        let mut stopping = std::pin::pin!(stopping);
        let mut tasks = JoinSet::new();
        loop {
            let next = self.begin_what_can(&mut tasks);
            let later = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut stopping => break,
                () = self.changed.notified() => {}
                () = later => {}
                Some(ended) = tasks.join_next() => say_if_it_failed(ended),
            }
        }
        let count = tasks.len();
        if count > 0 {
            tracing::info!(jobs = count, within = ?self.config.stop_within, "jobs under way may come to their end");
        }
        let end = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.config.stop_within, end).await.is_ok() {
            return;
        }
        for running in self.running().values() {
            running.order.send_if_modified(|order| {
                let goes_on = *order == Order::GoOn;
                if goes_on {
                    *order = Order::Leave;
                }
                goes_on
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Begins all that can; and when something could that cannot now.
    fn begin_what_can(self: &Arc<Self>, tasks: &mut JoinSet<()>) -> Option<Instant> {
        let mut next = None;
        let jobs = self.queue.jobs();
        let mut waiting = Vec::new();
        for job in jobs.into_iter().filter(|job| job.state == JobState::Queued) {
            if self.running().contains_key(&job.id) {
                continue;
            }
            if !job.cancel_wanted {
                waiting.push(job);
            } else if let Err(error) = self.abandon(&job) {
                // Told of while it ran, and then it came back to the queue, or the daemon ended.
                tracing::error!(job = job.id, %error, "it cannot be cancelled");
            }
        }
        for job in waiting {
            if self.running().len() >= self.config.jobs {
                break;
            }
            if let Some(&time) = self.not_before().get(&job.id)
                && time > Instant::now()
            {
                next = Some(next.map_or(time, |other: Instant| other.min(time)));
                continue;
            }
            let luns = self.luns_of(&job);
            if luns
                .iter()
                .any(|lun| self.readers_of(lun) >= self.config.jobs_per_lun)
            {
                continue;
            }
            if let Err(error) = self.begin(&job, luns, tasks) {
                tracing::error!(job = job.id, %error, "it cannot begin");
                // The queue's disk is full, most likely; nothing can begin now.
                return Some(Instant::now() + RETRY_PAUSE);
            }
        }
        next
    }

    fn luns_of(&self, job: &JobReport) -> Vec<String> {
        let host = self.config.hosts.get(&job.request.host);
        host.map(|host| host.luns.iter().map(|(name, _)| name.clone()).collect())
            .unwrap_or_default()
    }

    fn begin(self: &Arc<Self>, job: &JobReport, luns: Vec<String>, tasks: &mut JoinSet<()>) -> Result<()> {
        let id = job.id;
        if job.attempts >= ATTEMPTS_MAX {
            let message = format!("it was begun {ATTEMPTS_MAX} times, and never came to an end");
            return self.settle(id, Err(Error::new(ErrorKind::Io, message)));
        }
        let (order, orders) = watch::channel(Order::GoOn);
        let live = Arc::new(Live::new(Arc::clone(&self.metrics)));
        let throttle = Throttle::default();
        let running = Running {
            luns,
            live: Arc::clone(&live),
            order,
            throttle: throttle.clone(),
        };
        // Before the state says so: who cancels a job that runs finds it here.
        self.running().insert(id, running);
        let mut begun = false;
        let updated = self.queue.update(id, |job| {
            // It may have been cancelled since we looked.
            if job.state != JobState::Queued || job.cancel_wanted {
                return;
            }
            begun = true;
            job.state = JobState::Running;
            job.attempts += 1;
            job.started.get_or_insert_with(now);
            job.failure = None;
        });
        let job = match updated {
            Ok(job) if begun => {
                // What is set from here on finds it running.
                if let Some(job) = self.queue.job(id) {
                    throttle.set(throttle_limits(job.limits));
                }
                job
            }
            other => {
                self.running().remove(&id);
                return other.map(drop);
            }
        };
        tracing::info!(
            job = id,
            host = job.request.host,
            volume = job.request.volume,
            attempt = job.attempts,
            "begun"
        );
        let scheduler = Arc::clone(self);
        tasks.spawn(async move {
            // Also where the work panics: a place that is never given back stops the queue.
            let _place = Place {
                scheduler: &scheduler,
                id,
            };
            scheduler.work(job, live, throttle, Orders(orders)).await;
        });
        Ok(())
    }

    async fn work(&self, job: JobReport, live: Arc<Live>, throttle: Throttle, orders: Orders) {
        let worker = Worker {
            config: Arc::clone(&self.config),
            queue: Arc::clone(&self.queue),
            repository: Arc::clone(&self.repository),
            live,
            throttle,
            orders: orders.clone(),
        };
        let outcome = worker.run(&job).await;
        let stopped = matches!(&outcome, Err(error) if error.kind() == ErrorKind::Interrupted);
        let cancelled = self.queue.job(job.id).is_some_and(|job| job.cancel_wanted);
        let settled = match orders.now() {
            _ if cancelled && outcome.is_err() => self.abandon(&job),
            Order::Leave if stopped => {
                tracing::warn!(
                    job = job.id,
                    "left in the midst of it; the next start goes on with it"
                );
                Ok(())
            }
            _ => self.settle(job.id, outcome),
        };
        if let Err(error) = settled {
            tracing::error!(job = job.id, %error, "what became of it cannot be written down");
        }
    }

    /// Notes what became of a job.
    fn settle(&self, id: u64, outcome: Result<Finished>) -> Result<()> {
        let attempts = self.config.attempts;
        let mut again = None;
        if let (Some(job), Err(error)) = (self.queue.job(id), &outcome)
            && !(may_pass(error) && job.attempts < attempts)
        {
            // No later job would use it, and it would fill the repository.
            self.clear_after(&job, error);
        }
        let mut was_open = true;
        let job = self.queue.update(id, |job| match outcome {
            _ if job.state.is_final() => was_open = false,
            Ok(finished) => {
                job.verified = finished.verified;
                job.state = JobState::Done;
                job.ended = Some(now());
                // The image is good; what was asked for beside that was missed.
                job.failure = finished.policy_missed.as_ref().map(failure);
            }
            Err(error) if may_pass(&error) && job.attempts < attempts => {
                job.state = JobState::Queued;
                job.notes.push(format!("to be begun again: {error}"));
                again = Some(RETRY_PAUSE * job.attempts);
            }
            Err(error) => {
                job.state = JobState::Failed;
                job.ended = Some(now());
                job.failure = Some(failure(&error));
            }
        })?;
        if !was_open {
            return Ok(());
        }
        match (again, &job.failure) {
            (Some(pause), _) => {
                tracing::warn!(
                    job = id,
                    ?pause,
                    note = job.notes.last(),
                    "waits to be begun again"
                );
                self.metrics.began_again();
                self.not_before().insert(id, Instant::now() + pause);
            }
            (None, Some(failure)) => {
                tracing::error!(
                    job = id,
                    state = job.state.name(),
                    kind = failure.kind,
                    "{}",
                    failure.message
                );
            }
            (None, None) => tracing::info!(job = id, image = job.image, verified = job.verified, "done"),
        }
        if job.state.is_final() {
            self.not_before().remove(&id);
            self.metrics.ended(&job);
        }
        Ok(())
    }

    /// Removes what a job that failed for good has not finished. A whole image that could not get its name stays.
    fn clear_after(&self, job: &JobReport, error: &Error) {
        if error.kind() == ErrorKind::OutputExists {
            return;
        }
        let image = self.repository.place(job.image.as_deref().unwrap_or_default());
        if let Err(error) = image.and_then(|image| self.repository.clear(&image)) {
            tracing::warn!(job = job.id, %error, "its unfinished image could not be removed");
        }
    }

    fn abandon(&self, job: &JobReport) -> Result<()> {
        let remove = || {
            let image = self.repository.place(job.image.as_deref().unwrap_or_default())?;
            self.repository.clear(&image)?;
            // It may have been whole already, and waited to be verified.
            self.repository.forget(&image)
        };
        let removed: Result<()> = remove();
        let mut was_open = false;
        let job = self.queue.update(job.id, |job| {
            if job.state.is_final() {
                return;
            }
            was_open = true;
            if let Err(error) = &removed {
                job.notes.push(format!("something is left of it: {error}"));
            }
            job.state = JobState::Cancelled;
            job.ended = Some(now());
        })?;
        if was_open {
            tracing::info!(
                job = job.id,
                left = removed.err().map(|error| error.to_string()),
                "cancelled"
            );
            self.not_before().remove(&job.id);
            self.metrics.ended(&job);
        }
        Ok(())
    }
}

/// A place among those that run, given back when it is dropped.
struct Place<'a> {
    scheduler: &'a Scheduler,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.scheduler.running().remove(&self.id);
        if std::thread::panicking() {
            let failed = self.scheduler.queue.update(self.id, |job| {
                job.state = JobState::Failed;
                job.ended = Some(now());
                job.failure = Some(JobFailure {
                    kind: "internal".to_owned(),
                    message: "the daemon met a bug; its log says where".to_owned(),
                    exit_code: 1,
                });
            });
            match failed {
                Ok(job) => {
                    let error = Error::new(ErrorKind::Io, "the daemon met a bug");
                    self.scheduler.clear_after(&job, &error);
                }
                Err(error) => {
                    tracing::error!(job = self.id, %error, "what became of it cannot be written down");
                }
            }
        }
        self.scheduler.wake();
    }
}

fn failure(error: &Error) -> JobFailure {
    let row = error.kind().row();
    JobFailure {
        kind: row.name.to_owned(),
        message: error.to_string(),
        exit_code: row.exit_code,
    }
}

fn say_if_it_failed(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job ended in disorder");
    }
}
