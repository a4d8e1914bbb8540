//! What a backup says at its end, for people and as JSON.

use std::fmt;

use indicatif::{HumanBytes, HumanDuration};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Checkpoint, End};
use crate::pipeline::Tally;
use crate::unreadable::UnreadableRanges;

/// Unreadable ranges that are listed for people.
const LISTED_FOR_PEOPLE: usize = 20;

/// One LUN of the job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LunReport {
    /// The host's name for it.
    pub lun: String,
    /// Where it was opened.
    pub path: String,
    /// How it was proven: `tag`, `sampled only`, or `not proven` (then nothing was read from it).
    pub proof: &'static str,
    /// Data in the image that came from it.
    pub bytes: u64,
    /// An audit found that it and the host give different bytes; what had been read from it was thrown away.
    pub audit_failed: bool,
    /// Its paths.
    pub paths: Vec<PathReport>,
}

/// One path to a LUN.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PathReport {
    /// The path.
    pub path: String,
    /// Bytes that this run read by it: data, what was read again or compared, and gaps that were read along.
    pub bytes_read: u64,
    /// Reads by it that failed.
    pub failures: u64,
    /// Why nothing was read by it any more from then on.
    pub given_up: Option<String>,
}

/// Why bytes were not read directly.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TransportReason {
    /// The reason.
    pub reason: String,
    /// Bytes of data that it stands for.
    pub bytes: u64,
}

/// The result of a backup. Field names are part of the command line's contract.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BackupReport {
    /// Size of the volume in bytes.
    pub size: u64,
    /// Data read from a LUN and confirmed, and stored.
    pub bytes_direct: u64,
    /// Data read through the host, and stored.
    pub bytes_nbd: u64,
    /// Zeroes and holes.
    pub bytes_zero: u64,
    /// What is as in the parent image. Leaves of it were not read; blocks of leaves that changed were, for their hashes, and are not stored.
    pub bytes_same: u64,
    /// Data read again after a failed validation.
    pub bytes_moved: u64,
    /// Of these, got direct from the new place.
    pub bytes_remapped_direct: u64,
    /// Direct data compared with the host's.
    pub bytes_audited: u64,
    /// Validations after a read.
    pub validations: u64,
    /// Share of the data that was read directly.
    pub percent_direct: f64,
    /// UUID of the frozen image of the parent; null for a full image.
    pub parent: Option<String>,
    /// Why an incremental backup became a full one.
    pub full_because: Option<String>,
    /// UUID of the frozen image; null for a server that publishes none.
    pub frozen: Option<String>,
    /// Root of the image's hash tree, in hex.
    pub root: String,
    /// Seconds from start to commit.
    pub seconds: f64,
    /// How each LUN was proven.
    pub identity: Vec<LunReport>,
    /// Why data was not read directly.
    pub transport_reasons: Vec<TransportReason>,
    /// Ranges that neither a LUN nor the host could read; zeroes stand in for them.
    pub unreadable: UnreadableRanges,
    /// How often a lost connection to the host was taken up again.
    pub reconnections: u32,
    /// The smallest direct share that was asked for, if it was missed.
    pub policy_missed: Option<f64>,
}

impl BackupReport {
    /// A report of committed work; the rest is filled in by the job.
    pub fn new(size: u64, tally: &Tally) -> Self {
        Self {
            size,
            bytes_direct: tally.bytes_direct,
            bytes_nbd: tally.bytes_nbd,
            bytes_zero: tally.bytes_zero,
            bytes_same: tally.bytes_same,
            bytes_moved: tally.bytes_moved,
            bytes_remapped_direct: tally.bytes_remapped_direct,
            bytes_audited: tally.bytes_audited,
            validations: tally.validations,
            percent_direct: tally.percent_direct(),
            parent: None,
            full_because: None,
            frozen: None,
            root: String::new(),
            seconds: 0.0,
            identity: Vec::new(),
            transport_reasons: tally
                .reasons
                .iter()
                .map(|(reason, &bytes)| TransportReason {
                    reason: reason.clone(),
                    bytes,
                })
                .collect(),
            unreadable: tally.unreadable.clone(),
            reconnections: 0,
            policy_missed: None,
        }
    }

    /// What the command ends with. The image is complete, and right but for what it says is unreadable, in any case.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], before [`ErrorKind::PolicyMissed`].
    pub fn verdict(&self) -> Result<()> {
        if let Some(damaged) = self.unreadable.error() {
            return Err(damaged);
        }
        let Some(wanted) = self.policy_missed else {
            return Ok(());
        };
        let message = format!(
            "only {:.1} % of the data was read directly, --require-direct wants {wanted} %; the image is complete and valid",
            self.percent_direct
        );
        Err(Error::new(ErrorKind::PolicyMissed, message))
    }
}

/// What is to be said of an image that is whole, beside that: whether all of it could be read, and whether `require_direct` percent of
/// its data were read directly.
///
/// # Errors
/// [`ErrorKind::Damaged`], [`ErrorKind::PolicyMissed`].
pub fn verdict_on(end: &End, require_direct: Option<f64>) -> Result<()> {
    let mut report = BackupReport::new(end.size, &Tally::resumed(&end.tally, &Checkpoint::default()));
    report.policy_missed = require_direct.filter(|&percent| report.percent_direct < percent);
    report.verdict()
}

/// The report as a few lines for people.
impl fmt::Display for BackupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let duration = HumanDuration(std::time::Duration::from_secs_f64(self.seconds));
        writeln!(
            f,
            "backed up {} in {duration}, root {}",
            HumanBytes(self.size),
            self.root
        )?;
        writeln!(
            f,
            "  direct  {:>12}  ({:.1} % of the data)",
            HumanBytes(self.bytes_direct).to_string(),
            self.percent_direct
        )?;
        writeln!(f, "  nbd     {:>12}", HumanBytes(self.bytes_nbd).to_string())?;
        writeln!(f, "  zero    {:>12}", HumanBytes(self.bytes_zero).to_string())?;
        if self.parent.is_some() {
            writeln!(
                f,
                "  same    {:>12}  as in the parent image",
                HumanBytes(self.bytes_same).to_string()
            )?;
        }
        if let Some(reason) = &self.full_because {
            writeln!(f, "  full, not incremental: {reason}")?;
        }
        writeln!(
            f,
            "  moved   {:>12}  read again, {} of it directly from the new place",
            HumanBytes(self.bytes_moved).to_string(),
            HumanBytes(self.bytes_remapped_direct)
        )?;
        for lun in &self.identity {
            writeln!(f, "  lun     {} at {}: {}", lun.lun, lun.path, lun.proof)?;
            if lun.audit_failed {
                writeln!(
                    f,
                    "          an audit found that it and the host give different bytes, so nothing of it was kept"
                )?;
            }
            for path in lun.paths.iter().filter(|path| path.failures > 0) {
                let given_up = path.given_up.as_deref();
                let end = given_up.map_or(String::new(), |why| format!(", and was given up: {why}"));
                writeln!(f, "          {} failed {} times{end}", path.path, path.failures)?;
            }
        }
        for reason in &self.transport_reasons {
            writeln!(
                f,
                "  not direct: {} because {}",
                HumanBytes(reason.bytes),
                reason.reason
            )?;
        }
        for range in self.unreadable.listed.iter().take(LISTED_FOR_PEOPLE) {
            writeln!(f, "  unreadable: bytes {range}")?;
        }
        match self.unreadable.count.saturating_sub(LISTED_FOR_PEOPLE as u64) {
            0 => Ok(()),
            more => writeln!(
                f,
                "  unreadable: {more} more ranges; --json lists the first thousand"
            ),
        }
    }
}
