//! One job: backup, verify, file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nbd_export::proxy::{JobReport, JobRequest, JobState};
use serde_json::{Value, json};

use super::allowed::AllowedOpener;
use super::config::DaemonConfig;
use super::live::Live;
use super::manifest::manifest;
use super::order::Orders;
use super::passing::{is_unknown_export, may_pass};
use super::queue::Queue;
use super::repository::Repository;
use super::set::file_set;
use crate::config::{ImagePath, LunArgument};
use crate::error::{Error, ErrorKind, Result};
use crate::interrupt::Interrupt;
use crate::job::backup::{AUDIT_PERCENT, BackupOptions, backup_unless};
use crate::job::doctor::refuse_used;
use crate::job::inspect::{Inspected, inspect};
use crate::job::resume::{ResumeOptions, Resumed, resume_unless};
use crate::job::verify::verify;
use crate::pipeline::{CheckpointEvery, Throttle};
use crate::progress::Progress;
use crate::report::{BackupReport, verdict_on};
use crate::transport::direct::DirectOpener;

/// What a job needs.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) config: Arc<DaemonConfig>,
    pub(super) queue: Arc<Queue>,
    pub(super) repository: Arc<Repository>,
    pub(super) live: Arc<Live>,
    /// How fast it may read, set while it does.
    pub(super) throttle: Throttle,
    pub(super) orders: Orders,
}

/// What came of a job.
pub(super) struct Finished {
    pub(super) verified: bool,
    pub(super) policy_missed: Option<Error>,
}

impl Worker {
    /// Does a job from where it is. An image that has its name already was committed before something ended the daemon: it is not
    /// made again.
    ///
    /// # Errors
    /// As [`backup`] and [`verify`]; an image that did not verify is set aside.
    pub(super) async fn run(&self, job: &JobReport) -> Result<Finished> {
        let name = job.image.as_deref().unwrap_or_default();
        let image = self.repository.place(name)?;
        if !image.exists()
            && let Some(report) = self.back_up(job, &image).await?
        {
            let report = json!(report);
            self.queue.update(job.id, |job| job.report = Some(report))?;
        }
        // Whoever made it, and whenever: what counts is what the image says.
        let inspected = on_thread({
            let image = image.clone();
            move || inspect(&image)
        });
        let inspected = self.or_aside(&image, inspected.await)?;
        self.or_aside(&image, is_of(&job.request, &inspected))?;
        let verified = self.config.verify;
        if verified {
            self.queue.update(job.id, |job| job.state = JobState::Verifying)?;
            self.verify(&image).await?;
        }
        let policy_missed = verdict_on(&inspected.end, job.request.require_direct).err();
        let job = self.queue.job(job.id).unwrap_or_else(|| job.clone());
        let (repository, queue) = (Arc::clone(&self.repository), Arc::clone(&self.queue));
        on_thread(move || {
            file(&repository, job.clone(), &inspected, &image, verified)?;
            // Whatever becomes of that, the image is good.
            if let Err(error) = file_set(&repository, &queue, &job) {
                tracing::error!(job = job.id, %error, "the manifest of its set");
                let note = format!("its set has no manifest: {error}");
                queue.update(job.id, |job| job.notes.push(note))?;
            }
            Ok(())
        })
        .await?;
        Ok(Finished {
            verified,
            policy_missed,
        })
    }

    /// Makes the image: from the last checkpoint of an earlier attempt, where there is one. `None`: it was whole but for its name.
    async fn back_up(&self, job: &JobReport, image: &Path) -> Result<Option<BackupReport>> {
        let request = &job.request;
        let host = self.config.hosts.get(&request.host).ok_or_else(|| {
            let message = format!("there is no host {} in the configuration any more", request.host);
            Error::new(ErrorKind::Usage, message)
        })?;
        let luns: Vec<(LunArgument, _)> = host
            .luns
            .iter()
            .filter_map(|(name, ranges)| Some((self.config.luns.get(name)?.clone(), ranges.clone())))
            .collect();
        let parts = luns
            .iter()
            .map(|(lun, ranges)| (lun.path.clone(), ranges.clone()));
        let opener = AllowedOpener::new(&DirectOpener, parts.collect());
        // Told to the plan as well, so that no read is tried that would be refused.
        let told = |(lun, ranges): (LunArgument, Option<Vec<_>>)| LunArgument {
            allowed: ranges.unwrap_or_default(),
            ..lun
        };
        let luns: Vec<LunArgument> = luns.into_iter().map(told).collect();
        if !host.is_this_machine {
            let luns = luns.clone();
            on_thread(move || refuse_used(&luns)).await?;
        }
        let uri = host.export(&request.export)?;
        let checkpoints = CheckpointEvery {
            bytes: self.config.checkpoint_every,
            ..CheckpointEvery::default()
        };
        let progress = Progress::observed(self.live.clone());
        let report = if self.repository.has_unfinished(image) {
            let options = ResumeOptions {
                uri: Some(uri.clone()),
                // What an image says of paths is as old as the image.
                luns: luns.clone(),
                only_these_luns: true,
                host_is_this_machine: host.is_this_machine,
                require_direct: request.require_direct,
                audit_percent: request.audit,
                checkpoints,
                throttle: self.throttle.clone(),
                spool: self.config.spool.clone(),
                ..ResumeOptions::new(image)
            };
            let resumed = resume_unless(&options, &opener, self.orders.stopped(), &progress).await;
            self.resumed(job, image, resumed)?
        } else {
            None
        };
        let report = match report {
            Some(report) => report,
            None if image.exists() => return Ok(None),
            None => {
                let options = BackupOptions {
                    frozen: request.frozen,
                    luns,
                    require_direct: request.require_direct,
                    audit_percent: request.audit.unwrap_or(AUDIT_PERCENT),
                    parent: None,
                    checkpoints: Some(checkpoints),
                    throttle: self.throttle.clone(),
                    spool: self.config.spool.clone(),
                    ..BackupOptions::new(uri, ImagePath::File(image.to_owned()))
                };
                let made = backup_unless(&options, &opener, self.orders.stopped(), &progress).await;
                made.map_err(|error| {
                    // What was thawed has no such export any more.
                    if request.frozen.is_some() && is_unknown_export(&error) {
                        let message = "the host does not offer the frozen image of the job (any more)";
                        return Error::new(ErrorKind::FrozenImageGone, message).caused_by(error);
                    }
                    error
                })?
            }
        };
        Ok(Some(report))
    }

    /// What an attempt to go on came to; where there was nothing to go on from, what is left is thrown away.
    fn resumed(
        &self,
        job: &JobReport,
        image: &Path,
        resumed: Result<Resumed>,
    ) -> Result<Option<BackupReport>> {
        let note = match resumed {
            Ok(Resumed::Finished(report)) => {
                self.note(job.id, "gone on with from the last checkpoint".to_owned())?;
                return Ok(Some(*report));
            }
            Ok(Resumed::WasWhole(_)) => return Ok(None),
            Err(error) => match error.kind() {
                ErrorKind::ImageBad | ErrorKind::ImageUnsupported => {
                    format!("begun again from the start: {error}")
                }
                // Any frozen image will do for such a job.
                ErrorKind::FrozenImageGone if job.request.frozen.is_none() && !may_pass(&error) => {
                    format!("begun again from the start: {error}")
                }
                _ => return Err(error),
            },
        };
        tracing::warn!(job = job.id, "{note}");
        self.note(job.id, note)?;
        self.repository.clear(image)?;
        Ok(None)
    }

    fn note(&self, id: u64, note: String) -> Result<()> {
        self.queue.update(id, |job| job.notes.push(note)).map(drop)
    }

    async fn verify(&self, image: &Path) -> Result<()> {
        let (path, interrupt) = (image.to_owned(), Interrupt::default());
        let verified = on_thread({
            let interrupt = interrupt.clone();
            move || {
                let verified = verify(&path, &[], &interrupt, &mut |_, _| {})?;
                verified.unreadable.error().map_or(Ok(()), Err)
            }
        });
        let verified = tokio::select! {
            verified = verified => verified,
            stopped = self.orders.stopped() => {
                interrupt.raise();
                Err(stopped)
            }
        };
        self.or_aside(image, verified)
    }

    /// What was found out of an image; one that is not what it has to be is set aside.
    fn or_aside<T>(&self, image: &Path, found: Result<T>) -> Result<T> {
        if let Err(error) = &found
            && matches!(
                error.kind(),
                ErrorKind::ImageBad | ErrorKind::ImageUnsupported | ErrorKind::FrozenImageGone
            )
        {
            self.repository.set_aside(image)?;
        }
        found
    }
}

/// An image of another frozen image is not the one that was asked for, whoever looked at what when it was made.
fn is_of(request: &JobRequest, inspected: &Inspected) -> Result<()> {
    match request.frozen {
        Some(wanted) if wanted != inspected.header.frozen => {
            let message = "the image is of another frozen image than the job";
            Err(Error::new(ErrorKind::FrozenImageGone, message).of_volume(request.export.clone()))
        }
        _ => Ok(()),
    }
}

/// Files the manifest.
fn file(
    repository: &Repository,
    mut job: JobReport,
    inspected: &Inspected,
    image: &Path,
    verified: bool,
) -> Result<()> {
    let bytes = fs::metadata(image)
        .map_err(|error| Error::io("looking at the image", image, error))?
        .len();
    if job.report.is_none() {
        // The daemon ended between the commit and its own note of it.
        job.report = Some(Value::Null);
    }
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    repository.file_manifest(image, &manifest(&job, inspected, &name, bytes, verified))
}

/// What waits for disks does so on a thread.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Io, "a thread of the job failed").caused_by(error)),
    }
}
