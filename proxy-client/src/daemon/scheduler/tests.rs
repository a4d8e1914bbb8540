//! Jobs that are cancelled, and jobs that fail, at every moment.

use std::fs;
use std::path::PathBuf;

use nbd_export::proxy::JobRequest;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::daemon::queue::Submitted;

/// A daemon without clients.
struct World {
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("images")).unwrap();
        Self { directory }
    }

    /// As after a start.
    fn scheduler(&self) -> Arc<Scheduler> {
        let root = self.directory.path();
        let text = format!(
            "repository = {:?}\nstate = {:?}\n[listen]\nsocket = \"/x\"\n[host.web]\nuri = \"nbd+unix:///?socket=/none\"\n",
            root.join("images"),
            root.join("queue")
        );
        let config = DaemonConfig::parse(&text).unwrap();
        let queue = Arc::new(Queue::open(&config.state).unwrap());
        let repository = Arc::new(Repository::open(&config.repository).unwrap());
        Arc::new(Scheduler::new(Arc::new(config), queue, repository).unwrap())
    }

    /// A new job, with all that one can leave behind.
    fn job(&self, scheduler: &Scheduler) -> (JobReport, [PathBuf; 3]) {
        let request = JobRequest {
            key: Uuid::new_v4(),
            host: "web".into(),
            export: "vm".into(),
            volume: "vm".into(),
            frozen: None,
            require_direct: None,
            audit: None,
        };
        let Submitted::New(job) = scheduler.queue.submit(request, 10).unwrap() else {
            panic!("not a new job");
        };
        let image = scheduler.repository.place(job.image.as_deref().unwrap()).unwrap();
        let text = image.to_str().unwrap();
        let left = [
            format!("{text}.partial").into(),
            image.clone(),
            text.replace(".vbi.zst", ".json").into(),
        ];
        for path in &left {
            fs::write(path, "x").unwrap();
        }
        (job, left)
    }
}

fn state(scheduler: &Scheduler, job: &JobReport) -> JobState {
    scheduler.queue.job(job.id).unwrap().state
}

#[tokio::test]
async fn a_job_that_was_cancelled_since_we_looked_does_not_begin_and_leaves_nothing() {
    let world = World::new();
    let scheduler = world.scheduler();
    let (seen, left) = world.job(&scheduler);
    scheduler.cancel(seen.id).unwrap();
    assert!(left.iter().all(|path| !path.exists()));
    let mut tasks = JoinSet::new();
    scheduler.begin(&seen, Vec::new(), &mut tasks).unwrap();
    assert!(tasks.is_empty());
    assert_eq!(state(&scheduler, &seen), JobState::Cancelled);
    assert_eq!(scheduler.running_count(), 0);
}

/// The answer of a cancellation holds, though the daemon is killed before the job has heard of it.
#[tokio::test]
async fn what_was_cancelled_is_not_run_by_the_next_daemon() {
    let world = World::new();
    let scheduler = world.scheduler();
    let (job, left) = world.job(&scheduler);
    scheduler
        .queue
        .update(job.id, |job| job.state = JobState::Running)
        .unwrap();
    scheduler.cancel(job.id).unwrap();
    assert_eq!(state(&scheduler, &job), JobState::Running);
    drop(scheduler);
    let scheduler = world.scheduler();
    let mut tasks = JoinSet::new();
    scheduler.begin_what_can(&mut tasks);
    assert!(tasks.is_empty());
    assert_eq!(state(&scheduler, &job), JobState::Cancelled);
    assert!(left.iter().all(|path| !path.exists()));
}

#[tokio::test]
async fn a_job_that_failed_for_good_leaves_nothing_unfinished() {
    let world = World::new();
    let scheduler = world.scheduler();
    let (job, [partial, image, _]) = world.job(&scheduler);
    let lost = || Err(Error::new(ErrorKind::HostLost, "lost"));
    let begin = || {
        scheduler.queue.update(job.id, |job| {
            job.state = JobState::Running;
            job.attempts += 1;
        })
    };
    begin().unwrap();
    scheduler.settle(job.id, lost()).unwrap();
    assert_eq!(state(&scheduler, &job), JobState::Queued);
    assert!(partial.exists(), "it is gone on with");
    for _ in 0..2 {
        begin().unwrap();
        scheduler.settle(job.id, lost()).unwrap();
    }
    assert_eq!(state(&scheduler, &job), JobState::Failed);
    assert!(!partial.exists() && image.exists());

    let (job, [partial, ..]) = world.job(&scheduler);
    let full = Error::new(ErrorKind::Io, "the disk is full");
    scheduler.settle(job.id, Err(full)).unwrap();
    assert_eq!(state(&scheduler, &job), JobState::Failed);
    assert!(!partial.exists());
}
