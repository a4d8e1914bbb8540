//! How the agents of one machine take turns at a pool's metadata, and what they write down of it.
//!
//! The lock is in memory. The record is on a disk, and a freeze may be under way that holds the file system of just that disk still, or
//! whose root lies in the very pool. So a thread of its own works on the record: who waits for it gives up in time, and the lock is held
//! until it is through, so that nothing late is written over what the next one wrote.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;

use nix::libc;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::pool_record::{PoolRecord, Taken};
use crate::frozen::new_snapshot::RUN_DIRECTORY;
use crate::limits::POOL_RECORD_PATIENCE;

/// What the names of the files begin with; the UUID of the pool follows.
const PREFIX: &str = "thin-pool.";

/// Where the records are, which outlive a reboot, as a metadata snapshot does.
const RECORD_DIRECTORY: &str = "/var/lib/volmap";

/// Where the agents of one machine lock pools, and write down what they hold of them.
#[derive(Clone, Debug)]
pub(crate) struct PoolFiles {
    locks: PathBuf,
    records: PathBuf,
}

impl PoolFiles {
    /// Those of this machine.
    pub(crate) fn of_this_machine() -> Self {
        Self {
            locks: RUN_DIRECTORY.into(),
            records: RECORD_DIRECTORY.into(),
        }
    }

    #[cfg(test)]
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self {
            locks: directory.join("locks"),
            records: directory.join("records"),
        }
    }

    /// The UUIDs of the pools of which there is a record.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn pools(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.records) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut pools = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let pool = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let pool = pool.and_then(|pool| percent_decode_str(pool).decode_utf8().ok());
            pools.extend(pool.map(|pool| pool.into_owned()));
        }
        pools.sort_unstable();
        Ok(pools)
    }

    /// Locks the pool with this UUID; `None` where another agent has it. The files are left there at the end: who removed one could
    /// remove one that somebody locked meanwhile.
    ///
    /// # Errors
    /// Of the file system, or no thread.
    pub(super) fn lock(&self, pool: &str) -> io::Result<Option<PoolFile>> {
        let name = format!("{PREFIX}{}", utf8_percent_encode(pool, NON_ALPHANUMERIC));
        let lock = open_lock(&self.locks, &name)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let (jobs, ordered) = channel();
        let (done, answers) = channel();
        let records = self.records.clone();
        thread::Builder::new().spawn(move || {
            work(&records, &name, &ordered, &done);
            // And then `done` goes: see the end of a `PoolFile`.
            drop(lock);
        })?;
        Ok(Some(PoolFile {
            jobs: Some(jobs),
            answers,
            late: false,
        }))
    }
}

fn open_lock(directory: &Path, name: &str) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(directory.join(name))
}

#[derive(Debug)]
enum Job {
    Read,
    Write(Taken),
}

/// Does one job after the other, also when nobody waits for it any more.
fn work(records: &Path, name: &str, jobs: &Receiver<Job>, done: &Sender<io::Result<Taken>>) {
    let record = match PoolRecord::open(records, name) {
        Ok(record) => record,
        Err(error) => return drop(done.send(Err(error))),
    };
    for job in jobs {
        let answer = match job {
            Job::Read => record.taken(),
            Job::Write(taken) => record.write(taken).map(|()| taken),
        };
        drop(done.send(answer));
    }
}

/// The record of one pool, which nobody else has until it is dropped, however that happens.
#[derive(Debug)]
pub(super) struct PoolFile {
    jobs: Option<Sender<Job>>,
    answers: Receiver<io::Result<Taken>>,
    /// An answer did not come in time: those behind it are not waited for.
    late: bool,
}

impl PoolFile {
    /// What the record says.
    ///
    /// # Errors
    /// Of the file system. `TimedOut`: it does not answer.
    pub(super) fn taken(&mut self) -> io::Result<Taken> {
        self.order(Job::Read)
    }

    /// Has the record say something else, on stable storage at the return.
    ///
    /// # Errors
    /// Of the file system. `TimedOut`: it does not answer; what is written afterwards is written after this one.
    pub(super) fn write(&mut self, taken: Taken) -> io::Result<()> {
        self.order(Job::Write(taken)).map(drop)
    }

    fn order(&mut self, job: Job) -> io::Result<Taken> {
        let ended = || io::Error::other("there is no record");
        // Where it has ended, its last answer says why.
        let _told = self.jobs.as_ref().map(|jobs| jobs.send(job));
        if !self.late {
            match self.answers.recv_timeout(POOL_RECORD_PATIENCE) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                Err(RecvTimeoutError::Timeout) => self.late = true,
            }
        }
        let why = format!("the file system of {RECORD_DIRECTORY} does not answer: is it frozen, or full?");
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl Drop for PoolFile {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // Until there can be no answer any more: then the lock is free at the return.
        while !self.late && self.answers.recv_timeout(POOL_RECORD_PATIENCE).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_next_reads_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let files = PoolFiles::in_directory(directory.path());
        assert!(files.pools().unwrap().is_empty());
        let lock = || files.lock("LVM-abc/-tpool").unwrap();
        for taken in [Taken::Root(u64::MAX), Taken::Soon, Taken::Root(7), Taken::Nothing] {
            let mut file = lock().unwrap();
            assert!(lock().is_none(), "one at a time");
            file.write(taken).unwrap();
            drop(file);
            assert_eq!(lock().unwrap().taken().unwrap(), taken);
        }
        assert!(files.lock("LVM-abd/-tpool").unwrap().is_some());
        fs::write(files.records.join("another"), "").unwrap();
        assert_eq!(files.pools().unwrap(), ["LVM-abc/-tpool", "LVM-abd/-tpool"]);
    }

    #[test]
    fn a_record_that_cannot_be_opened_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let files = PoolFiles::in_directory(directory.path());
        fs::write(&files.records, "no directory").unwrap();
        let mut file = files.lock("p").unwrap().unwrap();
        assert_eq!(file.taken().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(file.write(Taken::Soon).is_err());
    }
}
