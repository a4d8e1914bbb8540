//! The jobs, on the disk: what was accepted survives whatever ends the daemon.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_export::proxy::{JobLimits, JobReport, JobRequest, JobState};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use tokio::sync::watch;

use super::clock::now;
use super::limits::ENDED_KEPT;
use super::repository::image_name;
use crate::error::{Error, ErrorKind, Result};

/// Jobs by number, as JSON.
const JOBS: TableDefinition<u64, &[u8]> = TableDefinition::new("jobs");

/// What became of a request.
#[derive(Debug)]
pub(super) enum Submitted {
    /// A new job.
    New(JobReport),
    /// The same request was made before.
    Known(JobReport),
    /// As many wait as may.
    Full,
}

/// The queue. What is told of it is what is on the disk.
#[derive(Debug)]
pub(super) struct Queue {
    database: Database,
    /// Turns true when a write fails: redb takes none after one that failed.
    failed: watch::Sender<bool>,
    jobs: Mutex<BTreeMap<u64, JobReport>>,
}

impl Queue {
    /// Opens it, or makes a new one.
    ///
    /// # Errors
    /// Another daemon has it, or it is none.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: redb::Error| {
            Error::new(ErrorKind::Io, "the queue cannot be used")
                .at_path(path)
                .caused_by(error)
        };
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        Self::of(database).map_err(failed)
    }

    fn of(database: Database) -> Result<Self, redb::Error> {
        let jobs = load(&database)?;
        Ok(Self {
            database,
            failed: watch::Sender::new(false),
            jobs: Mutex::new(jobs),
        })
    }

    /// Returns when it could not be written. What runs can be noted no more then, and only another start takes it up again.
    pub(super) async fn failed(&self) {
        // The sender is ours.
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, JobReport>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job in. It is durable when this returns.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn submit(&self, request: JobRequest, most: usize) -> Result<Submitted> {
        let mut jobs = self.lock();
        let same = |job: &&JobReport| job.request.key == request.key && job.request.host == request.host;
        if let Some(known) = jobs.values().find(same) {
            return Ok(Submitted::Known(known.clone()));
        }
        if jobs.values().filter(|job| !job.state.is_final()).count() >= most {
            return Ok(Submitted::Full);
        }
        let id = jobs.last_key_value().map_or(1, |(last, _)| last + 1);
        let submitted = now();
        let job = JobReport {
            id,
            image: Some(image_name(&request, id, submitted)),
            request,
            state: JobState::Queued,
            attempts: 0,
            submitted,
            started: None,
            ended: None,
            report: None,
            verified: false,
            cancel_wanted: false,
            limits: JobLimits::default(),
            failure: None,
            notes: Vec::new(),
            progress: None,
        };
        // The newest one is kept whatever happens: its number tells the next one.
        let ended: Vec<u64> = jobs
            .values()
            .filter(|job| job.state.is_final())
            .map(|job| job.id)
            .collect();
        let forgotten = &ended[..ended.len().saturating_sub(ENDED_KEPT)];
        self.write(&job, forgotten)?;
        for id in forgotten {
            jobs.remove(id);
        }
        jobs.insert(id, job.clone());
        Ok(Submitted::New(job))
    }

    /// Changes a job. The change is durable when this returns; where it cannot be, nothing has changed.
    ///
    /// # Errors
    /// The disk refuses, or there is no such job.
    pub(super) fn update(&self, id: u64, change: impl FnOnce(&mut JobReport)) -> Result<JobReport> {
        let mut jobs = self.lock();
        let Some(known) = jobs.get_mut(&id) else {
            return Err(Error::new(ErrorKind::Io, format!("there is no job {id}")));
        };
        let mut job = known.clone();
        change(&mut job);
        if job == *known {
            return Ok(job);
        }
        self.write(&job, &[])?;
        *known = job.clone();
        Ok(job)
    }

    fn write(&self, job: &JobReport, forgotten: &[u64]) -> Result<()> {
        let failed =
            |error: redb::Error| Error::new(ErrorKind::Io, "the queue cannot be written").caused_by(error);
        let text = serde_json::to_vec(job)
            .map_err(|error| Error::new(ErrorKind::Io, "the queue cannot be written").caused_by(error))?;
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(JOBS)?;
                table.insert(job.id, text.as_slice())?;
                for id in forgotten {
                    table.remove(id)?;
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| {
            self.failed.send_replace(true);
            failed(error)
        })
    }

    /// A job.
    pub(super) fn job(&self, id: u64) -> Option<JobReport> {
        self.lock().get(&id).cloned()
    }

    /// All jobs, in the order in which they came.
    pub(super) fn jobs(&self) -> Vec<JobReport> {
        self.lock().values().cloned().collect()
    }
}

fn load(database: &Database) -> Result<BTreeMap<u64, JobReport>, redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(JOBS)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let table = transaction.open_table(JOBS)?;
    let mut jobs = BTreeMap::new();
    for row in table.iter()? {
        let (id, text) = row?;
        let job = serde_json::from_slice(text.value())
            .map_err(|error| redb::Error::Corrupted(format!("job {}: {error}", id.value())))?;
        jobs.insert(id.value(), job);
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;
    use uuid::Uuid;

    use super::*;

    /// A disk that becomes full.
    #[derive(Debug, Default)]
    struct Disk {
        memory: InMemoryBackend,
        full: Arc<AtomicBool>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.memory.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if self.full.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.memory.write(offset, data)
        }
    }

    /// The database takes nothing more after one write that failed, so the daemon has to be told.
    #[tokio::test]
    async fn a_write_that_fails_is_told_to_the_daemon() {
        let disk = Disk::default();
        let full = Arc::clone(&disk.full);
        let queue = Queue::of(Database::builder().create_with_backend(disk).unwrap()).unwrap();
        let job = new(&queue, &request());
        assert!(!*queue.failed.borrow());
        full.store(true, Ordering::Relaxed);
        queue
            .update(job.id, |job| job.state = JobState::Running)
            .unwrap_err();
        assert_eq!(queue.job(job.id).unwrap().state, JobState::Queued);
        full.store(false, Ordering::Relaxed);
        assert!(queue.submit(request(), 100).is_err(), "it would not have to end");
        tokio::time::timeout(std::time::Duration::from_secs(5), queue.failed())
            .await
            .unwrap();
    }

    fn request() -> JobRequest {
        JobRequest {
            key: Uuid::new_v4(),
            host: "web".into(),
            export: "vm@1".into(),
            volume: "vm".into(),
            frozen: None,
            require_direct: None,
            audit: None,
        }
    }

    fn new(queue: &Queue, request: &JobRequest) -> JobReport {
        match queue.submit(request.clone(), 100).unwrap() {
            Submitted::New(job) => job,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn jobs_survive_and_numbers_are_not_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("q");
        let queue = Queue::open(&path).unwrap();
        let (first, second) = (new(&queue, &request()), new(&queue, &request()));
        assert_eq!((first.id, second.id), (1, 2));
        queue.update(1, |job| job.state = JobState::Running).unwrap();
        assert!(Queue::open(&path).is_err(), "two daemons on one queue");
        drop(queue);
        let queue = Queue::open(&path).unwrap();
        assert_eq!(queue.job(1).unwrap().state, JobState::Running);
        assert_eq!(queue.jobs().len(), 2);
        assert_eq!(new(&queue, &request()).id, 3);
    }

    #[test]
    fn a_request_is_one_job_however_often_it_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let queue = Queue::open(&directory.path().join("q")).unwrap();
        let asked = request();
        let job = new(&queue, &asked);
        match queue.submit(asked.clone(), 1).unwrap() {
            Submitted::Known(known) => assert_eq!(known, job),
            other => panic!("{other:?}"),
        }
        // A key of another host is another's.
        let other = JobRequest {
            host: "db".into(),
            ..asked
        };
        assert!(matches!(queue.submit(other.clone(), 1).unwrap(), Submitted::Full));
        queue.update(job.id, |job| job.state = JobState::Done).unwrap();
        assert!(matches!(queue.submit(other, 1).unwrap(), Submitted::New(_)));
    }

    #[test]
    fn what_has_ended_is_forgotten_in_the_end_and_what_waits_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("q");
        let queue = Queue::open(&path).unwrap();
        let waiting = new(&queue, &request()).id;
        {
            // As if so many had been there, without a write to the disk for each.
            let mut jobs = queue.lock();
            let model = jobs[&waiting].clone();
            for id in 2..=u64::try_from(ENDED_KEPT).unwrap() + 11 {
                let job = JobReport {
                    id,
                    state: JobState::Failed,
                    ..model.clone()
                };
                jobs.insert(id, job);
            }
        }
        new(&queue, &request());
        let jobs = queue.jobs();
        assert_eq!(jobs.len(), ENDED_KEPT + 2);
        assert_eq!(jobs[0].id, waiting);
        assert_eq!(jobs[1].id, 12);
    }
}
