//! `nbd-export backup`: freezes, hands the job to a proxy's daemon, waits for it, and thaws.
//!
//! The frozen image lives under a hold that this process renews while the daemon answers. Whatever becomes of it, of the daemon or of
//! the network, the agent thaws when the hold has run out.

use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::signals::Signals;
use super::{print_json, unexpected, unprintable};
use crate::cli::{BackupArgs, ProxyArgs, WatchBackupArgs};
use crate::config::control_path;
use crate::error::{Error, ErrorKind};
use crate::host::FrozenReport;
use crate::host::control::{Reply, Request, ask};
use crate::proxy::{JobFailure, JobList, JobReport, JobRequest, JobState, ProxyClient, ProxyError};

/// Between two looks at a job.
const POLL: Duration = Duration::from_secs(1);

/// For how long a daemon that does not answer is asked to take a job.
const SUBMIT_PATIENCE: Duration = Duration::from_secs(30);

/// How long an interrupted command waits for the answer to what it has sent.
const LAST_WORD: Duration = Duration::from_secs(5);

pub(super) fn run(args: &BackupArgs, out: &mut dyn Write) -> Result<(), Error> {
    let handover = Handover::new(&args.at, args.client.control.clone())?;
    runtime()?.block_on(async {
        let signals = Signals::catch()?;
        let frozen = handover.freeze(&args.name)?;
        let thaw_name = thaw_name(&frozen).to_owned();
        let mut jobs = Vec::new();
        if let Err(error) = handover.submit_all(args, &frozen, &signals, &mut jobs).await {
            handover.give_up(&jobs, &thaw_name).await;
            return Err(error);
        }
        if args.detach {
            if let Err(error) = watch_elsewhere(args, &thaw_name, &jobs) {
                handover.give_up(&jobs, &thaw_name).await;
                return Err(error);
            }
            return print(out, args.client.json, &jobs);
        }
        let ended = handover.watch(&signals, jobs, &thaw_name).await?;
        print(out, args.client.json, &ended)?;
        verdict(&ended)
    })
}

/// What `--detach` leaves behind: waits, renews and thaws.
pub(super) fn watch(args: &WatchBackupArgs) -> Result<(), Error> {
    let handover = Handover::new(&args.at, args.control.clone())?;
    runtime()?.block_on(async {
        let signals = Signals::catch()?;
        let mut jobs = Vec::new();
        for &id in &args.job {
            jobs.push(
                handover
                    .proxy
                    .job(id)
                    .await
                    .map_err(|error| handover.failed(error))?,
            );
        }
        verdict(&handover.watch(&signals, jobs, &args.frozen).await?)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| Error::caused(ErrorKind::System, "cannot start", why))
}

/// The two that are to agree: the agent here, and the proxy's daemon.
struct Handover {
    control: PathBuf,
    proxy: ProxyClient,
    hold: Duration,
}

impl Handover {
    fn new(at: &ProxyArgs, control: Option<PathBuf>) -> Result<Self, Error> {
        let url = at
            .proxy
            .parse()
            .map_err(|why| Error::caused(ErrorKind::Usage, format!("--proxy {}", at.proxy), why))?;
        let proxy = ProxyClient::new(url, at.tls_dir.as_deref())
            .map_err(|why| Error::caused(ErrorKind::Usage, format!("--proxy {}", at.proxy), why))?;
        Ok(Self {
            control: control_path(control.as_deref()),
            proxy,
            hold: Duration::from_secs(at.hold),
        })
    }

    fn freeze(&self, name: &str) -> Result<Vec<FrozenReport>, Error> {
        let request = Request::Freeze {
            name: name.to_owned(),
            id: None,
            hold_seconds: Some(self.hold.as_secs()),
        };
        match ask(&self.control, &request)? {
            Reply::Frozen(report) => Ok(vec![report]),
            Reply::FrozenSet(reports) => Ok(reports),
            _ => Err(unexpected()),
        }
    }

    fn renew(&self, name: &str) -> Result<(), Error> {
        let request = Request::Hold {
            export: name.to_owned(),
            seconds: self.hold.as_secs(),
        };
        ask(&self.control, &request).map(drop)
    }

    /// What all of it was filed of is the parent of the next backup; anything else must not take the place of one that was. Where this
    /// fails, the hold runs out all the same.
    fn thaw(&self, name: &str, jobs: &[JobReport]) {
        let committed = !jobs.is_empty() && jobs.iter().all(|job| job.state == JobState::Done);
        let request = Request::Thaw {
            export: name.to_owned(),
            drop: !committed,
        };
        if let Err(error) = ask(&self.control, &request) {
            tracing::warn!(export = name, %error, "it could not be thawed; the agent does so when the hold has run out");
        }
    }

    fn failed(&self, error: ProxyError) -> Error {
        Error::caused(
            ErrorKind::Proxy,
            format!("the proxy at {}", self.proxy.url()),
            error,
        )
    }

    /// Hands a job over for each frozen image, until a signal. Those in `jobs` are handed over, also where this fails.
    async fn submit_all(
        &self,
        args: &BackupArgs,
        frozen: &[FrozenReport],
        signals: &Signals,
        jobs: &mut Vec<JobReport>,
    ) -> Result<(), Error> {
        let host = match &args.host {
            Some(host) => host.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim().to_owned())
                .map_err(|why| Error::caused(ErrorKind::System, "this machine's name", why))?,
        };
        for report in frozen {
            let request = JobRequest {
                key: Uuid::new_v4(),
                host: host.clone(),
                export: report.export.clone(),
                volume: report.export.split('@').next().unwrap_or_default().to_owned(),
                frozen: Some(report.uuid),
                require_direct: args.require_direct,
                audit: None,
            };
            let mut submitted = pin!(self.submit(&request));
            tokio::select! {
                job = &mut submitted => jobs.push(job.map_err(|error| self.failed(error))?),
                () = signals.more_than(0) => {
                    // The daemon may have the job by now, and who has not heard its number cannot cancel it.
                    if let Ok(Ok(job)) = timeout(LAST_WORD, submitted).await {
                        jobs.push(job);
                    }
                    return Err(interrupted());
                }
            }
        }
        Ok(())
    }

    /// The key makes one job of it, however often it is sent.
    async fn submit(&self, request: &JobRequest) -> Result<JobReport, ProxyError> {
        let begun = Instant::now();
        loop {
            match self.proxy.submit(request).await {
                Err(error) if error.is_passing() && begun.elapsed() < SUBMIT_PATIENCE.min(self.hold / 2) => {
                    tracing::warn!(%error, "the proxy does not take the job yet");
                    sleep(POLL).await;
                }
                other => return other,
            }
        }
    }

    async fn cancel(&self, jobs: &[JobReport]) {
        for job in jobs.iter().filter(|job| !job.state.is_final()) {
            if let Err(error) = self.proxy.cancel(job.id).await {
                tracing::warn!(job = job.id, %error, "the proxy could not be told that nothing comes of the job");
            }
        }
    }

    /// Nothing is to come of it.
    async fn give_up(&self, jobs: &[JobReport], thaw_name: &str) {
        self.cancel(jobs).await;
        self.thaw(thaw_name, &[]);
    }

    /// Waits for the ends of jobs, and thaws. The hold is renewed while the daemon answers.
    async fn watch(
        &self,
        signals: &Signals,
        mut jobs: Vec<JobReport>,
        thaw_name: &str,
    ) -> Result<Vec<JobReport>, Error> {
        let mut heard = Instant::now();
        let mut renewed = Instant::now();
        let told = Told::new();
        while jobs.iter().any(|job| !job.state.is_final()) {
            tokio::select! {
                () = sleep(POLL) => {}
                () = signals.more_than(0) => {
                    self.give_up(&jobs, thaw_name).await;
                    return Err(interrupted());
                }
            }
            match self.look(&mut jobs).await {
                Ok(()) => heard = Instant::now(),
                Err(error) if error.is_passing() && heard.elapsed() < self.hold => {
                    tracing::warn!(%error, "the proxy does not answer; the frozen image is kept until its hold runs out");
                    continue;
                }
                Err(error) => {
                    self.thaw(thaw_name, &jobs);
                    return Err(self.failed(error));
                }
            }
            if renewed.elapsed() >= self.hold / 4 {
                // Gone, or thawed by somebody else: the job will say so.
                if let Err(error) = self.renew(thaw_name) {
                    tracing::warn!(%error, "the hold could not be renewed");
                }
                renewed = Instant::now();
            }
            told.tell(&jobs);
        }
        told.end();
        self.thaw(thaw_name, &jobs);
        Ok(jobs)
    }

    async fn look(&self, jobs: &mut [JobReport]) -> Result<(), ProxyError> {
        for job in jobs.iter_mut().filter(|job| !job.state.is_final()) {
            *job = self.proxy.job(job.id).await?;
        }
        Ok(())
    }
}

/// By what a freeze is thawed as a whole.
fn thaw_name(frozen: &[FrozenReport]) -> &str {
    frozen.first().map_or("", FrozenReport::thawed_by)
}

/// Starts the process that waits, on its own and out of the reach of this terminal.
fn watch_elsewhere(args: &BackupArgs, thaw_name: &str, jobs: &[JobReport]) -> Result<(), Error> {
    let failed = |why| Error::caused(ErrorKind::System, "nobody can be left to wait for the job", why);
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(["watch-backup", "--proxy", &args.at.proxy, "--frozen", thaw_name])
        .args(["--hold", &args.at.hold.to_string()])
        .arg("--control")
        .arg(control_path(args.client.control.as_deref()));
    if let Some(directory) = &args.at.tls_dir {
        command.arg("--tls-dir").arg(directory);
    }
    for job in jobs {
        command.args(["--job", &job.id.to_string()]);
    }
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().map(drop).map_err(failed)
}

/// One line on a terminal, written over and over.
struct Told {
    on_terminal: bool,
}

impl Told {
    fn new() -> Self {
        Self {
            on_terminal: io::stderr().is_terminal(),
        }
    }

    fn tell(&self, jobs: &[JobReport]) {
        if !self.on_terminal {
            return;
        }
        let words: Vec<String> = jobs.iter().map(progress).collect();
        eprint!("\r\x1b[K{}", words.join("; "));
    }

    fn end(&self) {
        if self.on_terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn progress(job: &JobReport) -> String {
    let percent = job.progress.filter(|progress| progress.size > 0).map(|progress| {
        format!(
            " {} %",
            u128::from(progress.done) * 100 / u128::from(progress.size)
        )
    });
    format!(
        "{}: {}{}",
        job.request.volume,
        job.state.name(),
        percent.unwrap_or_default()
    )
}

fn print(out: &mut dyn Write, json: bool, jobs: &[JobReport]) -> Result<(), Error> {
    if json {
        let jobs = JobList { jobs: jobs.to_vec() };
        return print_json(out, &jobs);
    }
    for job in jobs {
        let image = job.image.as_deref().unwrap_or_default();
        writeln!(out, "job {}: {}, {image}", job.id, progress(job)).map_err(unprintable)?;
    }
    Ok(())
}

/// What the command ends with: the worst of its jobs.
fn verdict(jobs: &[JobReport]) -> Result<(), Error> {
    let worst = jobs
        .iter()
        .filter_map(|job| Some((job, job.failure.as_ref()?)))
        .max_by_key(|(job, failure)| (job.state != JobState::Done, failure.exit_code));
    if let Some((job, failure)) = worst {
        return Err(Error::new(
            kind_of(failure),
            format!("job {} of {}: {}", job.id, job.request.volume, failure.message),
        ));
    }
    match jobs.iter().find(|job| job.state != JobState::Done) {
        Some(job) => Err(Error::new(
            ErrorKind::Backup,
            format!("job {} was {}", job.id, job.state.name()),
        )),
        None => Ok(()),
    }
}

fn kind_of(failure: &JobFailure) -> ErrorKind {
    match failure.exit_code {
        3 => ErrorKind::Damaged,
        4 => ErrorKind::PolicyMissed,
        5 => ErrorKind::Gone,
        6 => ErrorKind::ImageBad,
        _ => ErrorKind::Backup,
    }
}

fn interrupted() -> Error {
    Error::new(
        ErrorKind::Backup,
        "interrupted: the job is cancelled, and nothing is left frozen",
    )
}
