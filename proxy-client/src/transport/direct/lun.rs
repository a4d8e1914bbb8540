//! One LUN: read in whole blocks, by whichever of its paths works.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;
use volmap::identity::Identity;
use volmap::range::ByteRange;

use super::limits::{SECOND_TRY_WAIT, SHARES_ADMITTED, shares};
use super::lun_path::LunPath;
use super::memory::{Memory, MemoryPool};
use super::reader::{LunReader, memory_len};

/// A LUN of the job: what it is called, and how it is read.
pub struct Lun {
    /// The name under which the host maps to it.
    pub identity: Identity,
    paths: Vec<LunPath>,
    /// The path that worked last.
    current: AtomicUsize,
    /// How long a read may take; without one nothing is waited for twice either.
    deadline: Option<Duration>,
    /// What may be read of it; empty: all.
    allowed: Vec<ByteRange>,
    /// Reads that were begun or wait for their turn, in shares.
    admitted: Semaphore,
    memory: MemoryPool,
}

/// The bytes that were asked for, inside the blocks that were read.
#[derive(Debug)]
pub struct LunBytes {
    blocks: Memory,
    wanted: Range<usize>,
}

impl LunBytes {
    /// Whether most of the memory that this keeps is what was asked for.
    pub fn fills_its_memory(&self) -> bool {
        self.wanted.len() >= self.blocks.len() / 4 * 3
    }

    /// The bytes that were asked for.
    pub fn bytes(&self) -> &[u8] {
        &self.blocks[self.wanted.clone()]
    }
}

impl Lun {
    /// A LUN behind one path, that is waited for as long as it takes.
    pub fn new(identity: Identity, path: PathBuf, reader: Box<dyn LunReader>) -> Self {
        Self {
            identity,
            paths: vec![LunPath::new(path, reader)],
            current: AtomicUsize::new(0),
            deadline: None,
            allowed: Vec::new(),
            admitted: Semaphore::new(SHARES_ADMITTED as usize),
            memory: MemoryPool::default(),
        }
    }

    /// The same, also by another path.
    ///
    /// # Errors
    /// The LUN has another size there.
    pub fn also_by(&mut self, path: PathBuf, reader: Box<dyn LunReader>) -> io::Result<()> {
        if reader.size() != self.size() {
            let message = format!(
                "it has {} bytes by one path and {} by another",
                self.size(),
                reader.size()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.paths.push(LunPath::new(path, reader));
        Ok(())
    }

    /// The same, with a deadline for every read, and a second try where every path failed.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }

    /// The same, with the memory of other LUNs.
    #[must_use]
    pub fn sharing(self, memory: MemoryPool) -> Self {
        Self { memory, ..self }
    }

    /// Allows these ranges to be read, beside those that were allowed before. Without any all of it may be read.
    pub fn allow(&mut self, ranges: &[ByteRange]) {
        self.allowed.extend_from_slice(ranges);
        self.allowed.sort_unstable_by_key(|range| range.start());
        self.allowed.dedup_by(|next, kept| {
            let joins = next.start() <= kept.end();
            if joins && let Some(joined) = ByteRange::from_bounds(kept.start(), kept.end().max(next.end())) {
                *kept = joined;
            }
            joins
        });
    }

    /// What may be read of it; empty: all.
    pub fn allowed(&self) -> &[ByteRange] {
        &self.allowed
    }

    /// Whether all of `range` may be read.
    pub fn allows(&self, range: ByteRange) -> bool {
        self.allowed.is_empty() || self.allowed.iter().any(|allowed| allowed.covers(range))
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.paths[0].reader.size()
    }

    /// Where it is, by the path that the operator named first.
    pub fn path(&self) -> &Path {
        &self.paths[0].path
    }

    /// Every path.
    pub fn paths(&self) -> &[LunPath] {
        &self.paths
    }

    /// Reads `range` by every path that was not given up: each has to be proven. With the numbers of the paths.
    pub async fn read_by_each(&self, range: ByteRange) -> Vec<(usize, io::Result<LunBytes>)> {
        let mut reads = Vec::new();
        for (number, path) in self.paths.iter().enumerate() {
            if path.given_up().is_some() {
                continue;
            }
            let read = match self.check(range) {
                Ok(()) => self.by_path(path, range).await,
                Err(error) => Err(error),
            };
            reads.push((number, read));
        }
        reads
    }

    /// Whether `range` may be read, and is there.
    fn check(&self, range: ByteRange) -> io::Result<()> {
        if !self.allows(range) {
            let message = "it is outside of what --lun allows";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        if range.end() > self.size() {
            return Err(past_end());
        }
        Ok(())
    }

    /// Reads `range`, rounded outward to whole blocks; neighbours of the range never leave the buffer. Reads in flight are bounded.
    ///
    /// # Errors
    /// The range passes the end of the LUN ([`io::ErrorKind::UnexpectedEof`]) or is not allowed
    /// ([`io::ErrorKind::PermissionDenied`]); or the read failed by every path.
    pub async fn read(&self, range: ByteRange) -> io::Result<LunBytes> {
        self.check(range)?;
        let permits = self.admitted.acquire_many(shares(range.len())).await;
        let _shares = permits.map_err(io::Error::other)?;
        match self.by_any_path(range).await {
            Err(error) if self.is_worth_another_try(&error) => {
                tracing::debug!(lun = %self.identity, %range, %error, "every path is tried once more");
                sleep(SECOND_TRY_WAIT).await;
                self.by_any_path(range).await
            }
            read => read,
        }
    }

    fn is_worth_another_try(&self, error: &io::Error) -> bool {
        self.deadline.is_some()
            && error.kind() != io::ErrorKind::PermissionDenied
            && self.paths.iter().any(|path| path.given_up().is_none())
    }

    async fn by_any_path(&self, range: ByteRange) -> io::Result<LunBytes> {
        let first = self.current.load(Ordering::Relaxed);
        let mut failed = None;
        for number in (0..self.paths.len()).map(|step| (first + step) % self.paths.len()) {
            let path = &self.paths[number];
            if path.given_up().is_some() {
                continue;
            }
            match self.by_path(path, range).await {
                Ok(read) => {
                    if number != first {
                        self.current.store(number, Ordering::Relaxed);
                        tracing::info!(lun = %self.identity, path = %path.path.display(), "read by another path");
                    }
                    return Ok(read);
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| {
            let reasons = self.paths.iter().filter_map(LunPath::given_up);
            let message = reasons.last().unwrap_or("every path was given up").to_owned();
            io::Error::new(io::ErrorKind::NotConnected, message)
        }))
    }

    async fn by_path(&self, path: &LunPath, range: ByteRange) -> io::Result<LunBytes> {
        let blocks = range
            .align_outward(path.reader.block_size())
            .ok_or_else(past_end)?;
        let skip = memory_len(range.start() - blocks.start())?;
        let wanted = skip..skip + memory_len(range.len())?;
        let blocks = path.read(blocks, wanted.end, &self.memory, self.deadline).await?;
        Ok(LunBytes { blocks, wanted })
    }
}

fn past_end() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the range passes the end of the LUN",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Instant;

    use super::super::limits::{FAILURES_IN_A_ROW, SHARES};
    use super::*;

    struct Memory(Vec<u8>);

    impl LunReader for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn block_size(&self) -> u64 {
            512
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512));
            let rest = &self.0[usize::try_from(offset).unwrap()..];
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }
    }

    fn lun(len: usize) -> Lun {
        let bytes = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        Lun::new(
            Identity::from_operator("l").unwrap(),
            "l".into(),
            Box::new(Memory(bytes)),
        )
    }

    #[tokio::test]
    async fn any_range_is_read_in_whole_blocks() {
        let lun = lun(5 * 512 + 100);
        for (start, end) in [
            (0, 1),
            (511, 513),
            (512, 1024),
            (2000, 2560),
            (2559, 2660),
            (0, 2660),
        ] {
            let read = lun
                .read(ByteRange::from_bounds(start, end).unwrap())
                .await
                .unwrap();
            let expected: Vec<u8> = (start..end).map(|i| u8::try_from(i % 251).unwrap()).collect();
            assert_eq!(read.bytes(), expected);
        }
    }

    #[tokio::test]
    async fn a_range_past_the_end_is_refused() {
        let lun = lun(1000);
        let read = |start, end| lun.read(ByteRange::from_bounds(start, end).unwrap());
        assert!(read(0, 1000).await.is_ok());
        let error = read(999, 1001).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// How the reads of a path end.
    #[derive(Clone, Copy)]
    enum Fault {
        None,
        Errno(i32),
        /// The next one alone.
        Once(i32),
        Short,
        Hangs,
    }

    /// A path with a fault that can be changed.
    #[derive(Clone)]
    struct Faulty(Arc<(Mutex<Fault>, Condvar, AtomicUsize)>);

    impl Faulty {
        fn new(fault: Fault) -> Self {
            Self(Arc::new((Mutex::new(fault), Condvar::new(), AtomicUsize::new(0))))
        }

        fn set(&self, fault: Fault) {
            *self.0.0.lock().unwrap() = fault;
            self.0.1.notify_all();
        }

        fn reads(&self) -> usize {
            self.0.2.load(Ordering::SeqCst)
        }
    }

    /// Lets go of reads that hang when a test ends, well or not: its runtime waits for them.
    struct LetGo(Faulty);

    impl Drop for LetGo {
        fn drop(&mut self) {
            self.0.set(Fault::None);
        }
    }

    impl LunReader for Faulty {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn block_size(&self) -> u64 {
            512
        }

        fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<usize> {
            self.0.2.fetch_add(1, Ordering::SeqCst);
            let fault = self
                .0
                .1
                .wait_while(self.0.0.lock().unwrap(), |fault| matches!(fault, Fault::Hangs));
            let mut fault = fault.unwrap();
            buf.fill(7);
            match *fault {
                Fault::Errno(code) => Err(io::Error::from_raw_os_error(code)),
                Fault::Once(code) => {
                    *fault = Fault::None;
                    Err(io::Error::from_raw_os_error(code))
                }
                Fault::Short => Ok(buf.len() - 512),
                Fault::None | Fault::Hangs => Ok(buf.len()),
            }
        }
    }

    /// Time that no read takes on a busy machine, unless it hangs.
    const PATIENCE: Duration = Duration::from_secs(3);

    fn lun_by(paths: &[Faulty], deadline: Duration) -> Lun {
        let identity = Identity::from_operator("l").unwrap();
        let mut lun = Lun::new(identity, "0".into(), Box::new(paths[0].clone())).within(deadline);
        for (number, path) in paths.iter().enumerate().skip(1) {
            lun.also_by(number.to_string().into(), Box::new(path.clone()))
                .unwrap();
        }
        lun
    }

    fn somewhere() -> ByteRange {
        ByteRange::new(1000, 5000).unwrap()
    }

    #[tokio::test]
    async fn what_one_path_cannot_read_another_does() {
        for fault in [Fault::Errno(nix::libc::EIO), Fault::Short, Fault::Hangs] {
            let paths = [Faulty::new(fault), Faulty::new(Fault::None)];
            let _let_go = LetGo(paths[0].clone());
            let lun = lun_by(&paths, PATIENCE);
            assert_eq!(lun.read(somewhere()).await.unwrap().bytes(), [7; 5000]);
            lun.read(somewhere()).await.unwrap();
            // The path that worked is tried first from then on.
            assert_eq!((paths[0].reads(), paths[1].reads()), (1, 2));
            assert_eq!(lun.paths()[0].failures(), 1);
            assert_eq!(lun.paths()[0].given_up().is_some(), matches!(fault, Fault::Hangs));
            paths[0].set(Fault::None);
            paths[1].set(Fault::Errno(nix::libc::EIO));
            // What hung once is not trusted again.
            assert_eq!(
                lun.read(somewhere()).await.is_ok(),
                !matches!(fault, Fault::Hangs)
            );
        }
    }

    #[tokio::test]
    async fn a_device_that_vanished_is_not_asked_again() {
        let paths = [Faulty::new(Fault::Errno(nix::libc::ENODEV))];
        let lun = lun_by(&paths, PATIENCE);
        for _ in 0..3 {
            assert!(lun.read(somewhere()).await.is_err());
        }
        assert_eq!(paths[0].reads(), 1);
        assert!(lun.paths()[0].given_up().unwrap().contains("No such device"));
    }

    #[tokio::test]
    async fn an_error_that_passes_costs_a_second_try_and_one_that_stays_the_path() {
        let path = Faulty::new(Fault::Once(nix::libc::EIO));
        let lun = lun_by(std::slice::from_ref(&path), PATIENCE);
        let begun = Instant::now();
        let read = lun.read(somewhere()).await;
        assert!(read.is_ok() && path.reads() == 2);
        assert!(begun.elapsed() >= SECOND_TRY_WAIT / 2, "tried again at once");
        path.set(Fault::Errno(nix::libc::EIO));
        let most = usize::try_from(FAILURES_IN_A_ROW).unwrap();
        let reads = (0..most).map(|_| lun.read(somewhere()));
        for read in futures_util::future::join_all(reads).await {
            assert!(read.is_err());
        }
        assert!(lun.paths()[0].given_up().is_some());
        let before = path.reads();
        assert!(lun.read(somewhere()).await.is_err() && path.reads() == before);
    }

    /// A disk that hangs keeps the threads of the reads that hang, and no more.
    #[tokio::test]
    async fn a_hung_disk_does_not_use_up_all_threads() {
        let path = Faulty::new(Fault::Hangs);
        let _let_go = LetGo(path.clone());
        let lun = lun_by(std::slice::from_ref(&path), Duration::from_millis(200));
        let reads = (0..1000).map(|_| lun.read(somewhere()));
        for read in futures_util::future::join_all(reads).await {
            assert!(read.is_err());
        }
        assert!(path.reads() <= SHARES as usize, "{}", path.reads());
    }

    #[tokio::test]
    async fn only_what_is_allowed_is_read() {
        let path = Faulty::new(Fault::None);
        let mut lun = lun_by(std::slice::from_ref(&path), PATIENCE);
        let range = |start, end| ByteRange::from_bounds(start, end).unwrap();
        lun.allow(&[range(4096, 8192), range(8192, 9000), range(20_000, 21_000)]);
        for (wanted, allowed) in [
            (range(4096, 9000), true),
            (range(4095, 4097), false),
            (range(8999, 9001), false),
            (range(9000, 20_000), false),
            (range(20_500, 21_000), true),
        ] {
            assert_eq!(lun.allows(wanted), allowed, "{wanted}");
            let read = lun.read(wanted).await;
            assert_eq!(read.is_ok(), allowed, "{wanted}");
            let by_each = lun.read_by_each(wanted).await;
            assert!(by_each.iter().all(|(_, read)| read.is_ok() == allowed));
        }
        assert_eq!(path.reads(), 4);
    }

    #[test]
    fn a_path_to_a_disk_of_another_size_is_refused() {
        let mut lun = lun(1000);
        assert!(lun.also_by("b".into(), Box::new(Memory(vec![0; 1001]))).is_err());
        assert!(lun.also_by("c".into(), Box::new(Memory(vec![0; 1000]))).is_ok());
    }
}
