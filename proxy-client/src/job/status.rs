//! `status`: a daemon and what it does now, once or for as long as somebody watches.

use std::collections::BTreeMap;
use std::fmt;

use indicatif::HumanBytes;
use nbd_export::proxy::{DaemonStatus, JobReport, ProxyClient, ProxyError};
use serde::Serialize;
use tokio::time::Instant;

use super::jobs::Line;

/// A daemon at one moment.
#[derive(Serialize)]
pub struct Look {
    #[serde(flatten)]
    status: DaemonStatus,
    /// Those that have not come to their end, the newest first.
    jobs: Vec<JobReport>,
    /// Bytes a second that each has read, by its number; of those that were there at the look before.
    #[serde(skip)]
    paces: BTreeMap<u64, u64>,
    #[serde(skip)]
    at: Instant,
}

impl Look {
    /// Asks a daemon; what was seen `before` gives the pace of its jobs.
    ///
    /// # Errors
    /// Those of the daemon, and of the way to it.
    pub async fn at(daemon: &ProxyClient, before: Option<&Self>) -> Result<Self, ProxyError> {
        let status = daemon.status().await?;
        let mut jobs = daemon.jobs().await?.jobs;
        jobs.retain(|job| !job.state.is_final());
        let now = Instant::now();
        let mut look = Self {
            status,
            jobs,
            paces: BTreeMap::new(),
            at: now,
        };
        if let Some(before) = before {
            look.paces = look.paces_since(before);
        }
        Ok(look)
    }

    fn paces_since(&self, before: &Self) -> BTreeMap<u64, u64> {
        let read = |job: &JobReport| Some((job.id, job.progress.map(|done| done.direct + done.nbd)?));
        let earlier: BTreeMap<u64, u64> = before.jobs.iter().filter_map(read).collect();
        let milliseconds = (self.at - before.at).as_millis().max(1);
        let now = self.jobs.iter().filter_map(read);
        now.filter_map(|(id, bytes)| {
            // Less than before: it was begun again.
            let bytes = bytes.checked_sub(*earlier.get(&id)?)?;
            Some((
                id,
                u64::try_from(u128::from(bytes) * 1000 / milliseconds).unwrap_or(u64::MAX),
            ))
        })
        .collect()
    }
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = &self.status;
        writeln!(f, "proxy-client {}", status.version)?;
        writeln!(
            f,
            "  repository  {}, {} free",
            status.repository,
            HumanBytes(status.repository_free)
        )?;
        writeln!(
            f,
            "  jobs        {} of at most {} under way, {} wait",
            status.running, status.most, status.queued
        )?;
        for lun in &status.luns {
            writeln!(f, "  lun         {}: read by {}", lun.name, lun.jobs)?;
        }
        for job in &self.jobs {
            write!(f, "{}", Line(job))?;
            match self.paces.get(&job.id) {
                Some(&pace) => writeln!(f, "  {}/s", HumanBytes(pace))?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn look(at: Instant, jobs: &[(u64, u64)]) -> Look {
        let job = |&(id, direct): &(u64, u64)| {
            json!({ "id": id, "request": { "key": uuid::Uuid::nil(), "host": "h", "volume": "v", "export": "v" }, "state": "running", "attempts": 1,
                "submitted": 0, "verified": false, "notes": [],
                "progress": { "done": direct, "size": 1000, "direct": direct, "nbd": 0, "zero": 0, "moved": 0 } })
        };
        let status = json!({ "version": "1", "repository": "/r", "repository-free": 0, "queued": 0, "running": 1, "most": 2, "luns": [] });
        Look {
            status: serde_json::from_value(status).unwrap(),
            jobs: jobs
                .iter()
                .map(|told| serde_json::from_value(job(told)).unwrap())
                .collect(),
            paces: BTreeMap::new(),
            at,
        }
    }

    #[test]
    fn a_pace_is_of_jobs_that_were_there_before_and_went_on() {
        let begun = Instant::now();
        let before = look(begun, &[(3, 900), (2, 100), (1, 500)]);
        let mut now = look(
            begun + Duration::from_millis(500),
            &[(4, 700), (3, 20), (2, 200), (1, 500)],
        );
        now.paces = now.paces_since(&before);
        assert_eq!(now.paces.iter().collect::<Vec<_>>(), [(&1, &0), (&2, &200)]);
        let text = now.to_string();
        assert!(text.contains("h/v") && text.contains("  200 B/s\n"), "{text}");
        assert_eq!(json!(now)["jobs"][0]["id"], 4);
        assert_eq!(json!(now)["most"], 2);
    }
}
