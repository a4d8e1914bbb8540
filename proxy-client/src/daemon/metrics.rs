//! Numbers for Prometheus.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use nbd_export::proxy::{JobProgress, JobReport, JobState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Transport {
    transport: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Volume {
    host: String,
    volume: String,
}

/// All of them.
pub(super) struct Metrics {
    registry: Mutex<Registry>,
    bytes: Family<Transport, Counter>,
    moved: Counter,
    ended: Family<State, Counter>,
    restarts: Counter,
    jobs: Family<State, Gauge>,
    last_success: Family<Volume, Gauge>,
    last_duration: Family<Volume, Gauge<f64, AtomicU64>>,
    last_direct: Family<Volume, Gauge<f64, AtomicU64>>,
    last_size: Family<Volume, Gauge>,
    free: Gauge,
    copy_area_used: Family<Volume, Gauge>,
    copy_area_size: Family<Volume, Gauge>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("proxy_client");
        let metrics = Self {
            registry: Mutex::default(),
            bytes: Family::default(),
            moved: Counter::default(),
            ended: Family::default(),
            restarts: Counter::default(),
            jobs: Family::default(),
            last_success: Family::default(),
            last_duration: Family::default(),
            last_direct: Family::default(),
            last_size: Family::default(),
            free: Gauge::default(),
            copy_area_used: Family::default(),
            copy_area_size: Family::default(),
        };
        let m = &metrics;
        let bytes = Unit::Bytes;
        registry.register_with_unit(
            "volume",
            "Committed bytes of volumes, by how they were got",
            bytes.clone(),
            m.bytes.clone(),
        );
        registry.register_with_unit(
            "moved",
            "Bytes that were read again because they had moved",
            bytes.clone(),
            m.moved.clone(),
        );
        registry.register("jobs_ended", "Jobs that came to an end", m.ended.clone());
        registry.register(
            "jobs_begun_again",
            "Jobs that were begun again after something ended them",
            m.restarts.clone(),
        );
        registry.register("jobs", "Jobs that there are now", m.jobs.clone());
        registry.register_with_unit(
            "last_success_timestamp",
            "When the last good backup began",
            Unit::Seconds,
            m.last_success.clone(),
        );
        registry.register_with_unit(
            "last_duration",
            "How long the last good backup took",
            Unit::Seconds,
            m.last_duration.clone(),
        );
        registry.register(
            "last_direct_ratio",
            "Share of the data of the last good backup that was read from LUNs",
            m.last_direct.clone(),
        );
        registry.register_with_unit(
            "last_size",
            "Size of the volume in the last good backup",
            bytes.clone(),
            m.last_size.clone(),
        );
        registry.register_with_unit(
            "copy_area_used",
            "Old data in the copy area of the host, of jobs that run",
            bytes.clone(),
            m.copy_area_used.clone(),
        );
        registry.register_with_unit(
            "copy_area_size",
            "Room for old data in the copy area of the host, of jobs that run",
            bytes.clone(),
            m.copy_area_size.clone(),
        );
        registry.register_with_unit("repository_free", "Room in the repository", bytes, m.free.clone());
        *metrics.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        metrics
    }

    /// Work that was committed between two looks.
    pub(super) fn count(&self, before: &JobProgress, now: &JobProgress) {
        let more = |transport, before: u64, now: u64| {
            self.bytes
                .get_or_create(&Transport { transport })
                .inc_by(now.saturating_sub(before));
        };
        more("direct", before.direct, now.direct);
        more("nbd", before.nbd, now.nbd);
        more("zero", before.zero, now.zero);
        self.moved.inc_by(now.moved.saturating_sub(before.moved));
    }

    /// A job came to its end.
    pub(super) fn ended(&self, job: &JobReport) {
        let state = job.state.name();
        self.ended.get_or_create(&State { state }).inc();
        self.remember(job);
    }

    /// A job has to begin again.
    pub(super) fn began_again(&self) {
        self.restarts.inc();
    }

    /// What is known of a volume, after a start too.
    pub(super) fn remember(&self, job: &JobReport) {
        let (JobState::Done, Some(started)) = (job.state, job.started) else {
            return;
        };
        let volume = volume(job);
        self.last_success.get_or_create(&volume).set(started);
        let Some(report) = &job.report else { return };
        if let Some(seconds) = report["seconds"].as_f64() {
            self.last_duration.get_or_create(&volume).set(seconds);
        }
        if let Some(percent) = report["percent_direct"].as_f64() {
            self.last_direct.get_or_create(&volume).set(percent / 100.0);
        }
        if let Some(size) = report["size"].as_i64() {
            self.last_size.get_or_create(&volume).set(size);
        }
    }

    /// The text, with the numbers of the moment.
    pub(super) fn text(&self, jobs: &[JobReport], free: u64) -> String {
        for state in JobState::ALL.into_iter().filter(|state| !state.is_final()) {
            let count = jobs.iter().filter(|job| job.state == state).count();
            self.jobs
                .get_or_create(&State { state: state.name() })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.free.set(gauge(free));
        self.copy_area_used.clear();
        self.copy_area_size.clear();
        for job in jobs {
            if let Some(fill) = job.progress.and_then(|progress| progress.copy_area) {
                self.copy_area_used
                    .get_or_create(&volume(job))
                    .set(gauge(fill.used));
                self.copy_area_size
                    .get_or_create(&volume(job))
                    .set(gauge(fill.size));
            }
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

fn volume(job: &JobReport) -> Volume {
    Volume {
        host: job.request.host.clone(),
        volume: job.request.volume.clone(),
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
