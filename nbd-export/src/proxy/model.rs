//! The JSON of the daemon's API.

use std::num::{NonZeroU16, NonZeroU64};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A backup that somebody asks for. All names are those of the daemon's configuration, or become part of a file name; none is a path
/// or an address.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct JobRequest {
    /// Drawn by the client: the same request, sent again because the answer was lost, is the same job.
    pub key: Uuid,
    /// The host, by its name in the daemon's configuration.
    pub host: String,
    /// The export there.
    pub export: String,
    /// What the image is filed under.
    pub volume: String,
    /// The frozen image that the export has to be; any, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Uuid>,
    /// Smallest share of the data, in percent, that has to be read directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_direct: Option<f64>,
    /// Share of the direct data, in percent, that is compared with the host's; 0.1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<f64>,
}

/// How fast a job may read; what is left out is not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct JobLimits {
    /// Bytes a second, from LUNs and through the host together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU64>,
    /// Reads in flight, from LUNs and through the host together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<NonZeroU16>,
    /// While the host takes longer than so many milliseconds for an answer about its map, reads come one by one, with pauses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<NonZeroU64>,
}

/// How far a job is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// The image is being written.
    Running,
    /// The image is there, and is being read again.
    Verifying,
    /// The image is in the repository.
    Done,
    /// There is no good image.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Verifying,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether nothing more comes of it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// The word in JSON, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Verifying => "verifying",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Committed work of a job that runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobProgress {
    /// Size of the volume.
    pub size: u64,
    /// Bytes of it that are done.
    pub done: u64,
    /// Of these, read from LUNs.
    pub direct: u64,
    /// Of these, read through the host.
    pub nbd: u64,
    /// Of these, zeroes and holes.
    pub zero: u64,
    /// Bytes that had to be read again.
    pub moved: u64,
    /// How full the host's copy area is that keeps old data for it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_area: Option<CopyAreaFill>,
}

/// How full a copy area was when the proxy last looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CopyAreaFill {
    /// Bytes that hold old data.
    pub used: u64,
    /// Bytes that can hold old data.
    pub size: u64,
}

/// Why a job failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobFailure {
    /// The kind, as in `--error-format json` of proxy-client.
    pub kind: String,
    /// The sentence.
    pub message: String,
    /// The exit code that proxy-client would have ended with.
    pub exit_code: u8,
}

/// A job. Times are seconds since 1970.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobReport {
    /// Its number.
    pub id: u64,
    /// What was asked for.
    pub request: JobRequest,
    /// How far it is.
    pub state: JobState,
    /// How often it was begun.
    pub attempts: u32,
    /// When it was asked for.
    pub submitted: i64,
    /// When it was begun, the first time.
    pub started: Option<i64>,
    /// When it came to its end.
    pub ended: Option<i64>,
    /// The image, relative to the repository.
    pub image: Option<String>,
    /// The report of the backup, as `proxy-client backup --json` prints it.
    pub report: Option<serde_json::Value>,
    /// Whether the image was read again and found good.
    pub verified: bool,
    /// Whether somebody wants it ended: it is not begun any more, and nothing is left of it.
    #[serde(default)]
    pub cancel_wanted: bool,
    /// How fast it may read.
    #[serde(default)]
    pub limits: JobLimits,
    /// Why it failed.
    pub failure: Option<JobFailure>,
    /// What there is to say beside that: that it was begun again, and why.
    pub notes: Vec<String>,
    /// Committed work, while it runs.
    pub progress: Option<JobProgress>,
}

/// Jobs, the newest first.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct JobList {
    /// Those that the client may see.
    pub jobs: Vec<JobReport>,
}

/// A LUN of the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LunStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Jobs that read it at this moment.
    pub jobs: usize,
}

/// The daemon itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its repository.
    pub repository: String,
    /// Bytes that are free there.
    pub repository_free: u64,
    /// Jobs that wait.
    pub queued: usize,
    /// Jobs under way.
    pub running: usize,
    /// Most jobs at a time.
    pub most: usize,
    /// Its LUNs.
    pub luns: Vec<LunStatus>,
}

/// What the body of every answer that is no success says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs: `bad-request`, `forbidden`, `not-found`, `queue-full`, `too-large`, `too-slow`, `shutting-down`, `internal`.
    pub kind: String,
    /// For people.
    pub message: String,
}
