//! Limits in a file that is read again and again, so that they can be changed while a backup runs.

use std::fs;
use std::num::NonZero;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use nbd_export::config::parse_size;
use serde::Deserialize;
use tokio::time::sleep;

use crate::config::parse_duration;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{Throttle, ThrottleLimits};

/// Time between two looks at the file: a change is followed within it.
const EVERY: Duration = Duration::from_secs(1);

/// Most bytes of a file that is taken for one of limits.
const LENGTH_MAX: u64 = 64 << 10;

/// A file of limits, with those that hold where it names none.
#[derive(Clone, Debug)]
pub struct LimitsFile {
    path: PathBuf,
    otherwise: ThrottleLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Content {
    limit_rate: Option<String>,
    limit_reads: Option<u16>,
    limit_latency: Option<String>,
}

impl LimitsFile {
    /// The file at `path`.
    pub fn new(path: PathBuf, otherwise: ThrottleLimits) -> Self {
        Self { path, otherwise }
    }

    /// What it says now.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: it cannot be read, or is not of limits.
    pub fn read(&self) -> Result<ThrottleLimits> {
        self.limits().map_err(|why| {
            let what = format!("--limits {}: {why}", self.path.display());
            Error::new(ErrorKind::Usage, what)
        })
    }

    fn limits(&self) -> std::result::Result<ThrottleLimits, String> {
        let about = fs::metadata(&self.path).map_err(|error| error.to_string())?;
        if !about.is_file() || about.len() > LENGTH_MAX {
            return Err("this is no file of a few lines".to_owned());
        }
        let text = fs::read_to_string(&self.path).map_err(|error| error.to_string())?;
        let content: Content = toml::from_str(&text).map_err(|error| error.to_string())?;
        let rate = content.limit_rate.as_deref().map(parse_size).transpose();
        let rate = rate.map_err(|error| format!("limit-rate: {error}"))?;
        let latency = content.limit_latency.as_deref().map(parse_duration).transpose();
        let latency = latency.map_err(|error| format!("limit-latency: {error}"))?;
        let reads = content.limit_reads.map(usize::from);
        let ThrottleLimits {
            bytes_per_second,
            reads_in_flight,
            host_latency,
        } = self.otherwise;
        // Nothing in a second, or in no time, is no limit: so one of the command line is lifted.
        Ok(ThrottleLimits {
            bytes_per_second: rate.map_or(bytes_per_second, NonZero::new),
            reads_in_flight: reads.map_or(reads_in_flight, NonZero::new),
            host_latency: latency.map_or(host_latency, |latency| (!latency.is_zero()).then_some(latency)),
        })
    }

    /// Does some work, and has `throttle` follow the file meanwhile. What it says wrong is told, and changes nothing.
    pub async fn followed<T>(this: Option<&Self>, throttle: &Throttle, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let Some(this) = this else { return work.await };
        let mut told = None;
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = sleep(EVERY) => {}
            }
            let file = this.clone();
            // Of a file system that hangs nothing is heard, and nothing waits for it.
            let reading = tokio::task::spawn_blocking(move || file.limits());
            let limits = tokio::select! {
                done = &mut work => return done,
                limits = reading => limits.unwrap_or_else(|error| Err(error.to_string())),
            };
            match limits {
                Ok(limits) => {
                    told = None;
                    if limits != throttle.limits() {
                        tracing::info!(?limits, "limits are changed");
                        throttle.set(limits);
                    }
                }
                Err(why) => {
                    if told.as_ref() != Some(&why) {
                        tracing::warn!(file = %this.path.display(), why, "the limits stay as they were");
                    }
                    told = Some(why);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(rate: u64, reads: usize, latency_ms: u64) -> ThrottleLimits {
        ThrottleLimits {
            bytes_per_second: NonZero::new(rate),
            reads_in_flight: NonZero::new(reads),
            host_latency: (latency_ms > 0).then(|| Duration::from_millis(latency_ms)),
        }
    }

    #[test]
    fn what_a_file_names_goes_before_the_command_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits");
        let file = LimitsFile::new(path.clone(), limits(1000, 7, 50));
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            file.read().map_err(|error| error.to_string())
        };
        assert_eq!(read(""), Ok(limits(1000, 7, 50)));
        assert_eq!(read("limit-rate = \"2M\""), Ok(limits(2 << 20, 7, 50)));
        let all = "limit-rate = \"0\"\nlimit-reads = 0\nlimit-latency = \"0s\"";
        assert_eq!(read(all), Ok(ThrottleLimits::default()), "lifted");
        for wrong in [
            "limit-rates = \"2M\"",
            "limit-rate = 2.5",
            "limit-rate = \"fast\"",
            "limit-reads = -1",
            "limit-latency = \"1 moon\"",
            "\0",
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains("--limits"), "{error}");
        }
        assert!(read(&"#".repeat(65 << 10)).unwrap_err().contains("few lines"));
        let directory = LimitsFile::new(directory.path().to_owned(), limits(1, 1, 1));
        assert_eq!(directory.read().unwrap_err().kind(), ErrorKind::Usage);
    }

    #[tokio::test]
    async fn changes_are_followed_and_mistakes_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits");
        let file = LimitsFile::new(path.clone(), limits(1000, 7, 50));
        let throttle = Throttle::new(limits(1000, 7, 50));
        let until = async |wanted: ThrottleLimits| {
            while throttle.limits() != wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let changes = async {
            // It is not there at first.
            sleep(EVERY * 2).await;
            assert_eq!(throttle.limits(), limits(1000, 7, 50));
            fs::write(&path, "limit-rate = \"1K\"").unwrap();
            until(limits(1024, 7, 50)).await;
            fs::write(&path, "limit-rate = ").unwrap();
            sleep(EVERY * 2).await;
            assert_eq!(throttle.limits(), limits(1024, 7, 50));
            fs::write(&path, "limit-reads = 2").unwrap();
            until(limits(1000, 2, 50)).await;
        };
        LimitsFile::followed(Some(&file), &throttle, changes).await;
    }
}
