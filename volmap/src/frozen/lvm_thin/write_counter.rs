//! Whether anybody ever wrote to a block device: the kernel's own count.
//!
//! It rises with the first write, never falls while the device exists, and is not shared with the device that the writer of the origin
//! uses. So a count of zero that is seen after a read says that nothing had been written before it, whatever was done to the device's
//! read-only flag meanwhile.
//!
//! A kernel may be told not to count (`queue/iostats`), and some heed that for the device-mapper while others count all the same. So it
//! is tried: our own first read has to show.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::sys::DeviceNumber;

/// Fields of `stat` (Documentation/block/stat.rst of the kernel): sectors read, written, discarded. Requests would count flushes, too,
/// which change nothing.
const SECTORS_READ: usize = 2;
const SECTORS_WRITTEN: usize = 6;
const SECTORS_DISCARDED: usize = 13;

/// Whether the kernel is to count.
const TOLD: &str = "queue/iostats";

/// Looks at a write that is under way, which may be an empty one, and the pause between them. A device below that hangs for longer
/// leaves the question open.
const LOOKS: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The counters of one device.
#[derive(Debug)]
pub(super) struct WriteCounter {
    /// `/sys/dev/block/MAJOR:MINOR`.
    directory: PathBuf,
    /// What the kernel is told about counting, as it was when it counted our read.
    told: Vec<u64>,
}

impl WriteCounter {
    /// Of a device of this machine, of which `read` reads something past every cache.
    ///
    /// # Errors
    /// Of `read` and of sysfs; `Unsupported`: it does not count.
    pub(super) fn of(device: DeviceNumber, read: impl FnMut() -> io::Result<()>) -> io::Result<Self> {
        Self::at(PathBuf::from(format!("/sys/dev/block/{device}")), read)
    }

    /// The counters in a directory that looks like one of sysfs.
    fn at(directory: PathBuf, mut read: impl FnMut() -> io::Result<()>) -> io::Result<Self> {
        let mut counter = Self {
            directory,
            told: Vec::new(),
        };
        read()?;
        if !counter.has_counted()? {
            // It is a device of our own, which nobody else measures.
            fs::write(counter.directory.join(TOLD), "1")?;
            read()?;
            if !counter.has_counted()? {
                let why = "the kernel does not count what is read from and written to it (queue/iostats)";
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
        }
        counter.told = counter.numbers(TOLD)?;
        Ok(counter)
    }

    fn has_counted(&self) -> io::Result<bool> {
        let counted = self.numbers("stat")?;
        Ok(counted.get(SECTORS_READ).is_some_and(|&sectors| sectors > 0))
    }

    /// Whether nothing was ever written or discarded.
    ///
    /// # Errors
    /// Why not, or why nobody knows.
    pub(super) fn check(&self) -> Result<(), String> {
        let unreadable = |error: io::Error| format!("its count of writes cannot be read: {error}");
        for _ in 0..LOOKS {
            // A write is under way before it can change anything, and counted before it is not under way any more.
            let under_way = self.numbers("inflight").map_err(unreadable)?;
            let counted = self.numbers("stat").map_err(unreadable)?;
            let (Some(written), Some(discarded)) =
                (counted.get(SECTORS_WRITTEN), counted.get(SECTORS_DISCARDED))
            else {
                return Err("the kernel does not count discards of its device".to_owned());
            };
            if self.numbers(TOLD).map_err(unreadable)? != self.told {
                return Err(
                    "the kernel was told whether to count writes to its device (queue/iostats)".to_owned(),
                );
            }
            if (*written, *discarded) != (0, 0) {
                return Err("its device was written to".to_owned());
            }
            match under_way.get(1) {
                Some(0) => return Ok(()),
                Some(_) => thread::sleep(LOOK_AGAIN),
                None => return Err("the kernel does not tell what is under way to its device".to_owned()),
            }
        }
        Err("a write to its device is under way".to_owned())
    }

    fn numbers(&self, name: &str) -> io::Result<Vec<u64>> {
        let text = fs::read_to_string(self.directory.join(name))?;
        let numbers = text.split_whitespace().map(str::parse);
        numbers
            .collect::<Result<_, _>>()
            .map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const UNTOUCHED: &str = "  12 0 96 4  3 0 0 0  0 8 8  0 0 0 0  3 0\n";
    const NOTHING_COUNTED: &str = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";

    /// Sysfs never shows half a file.
    fn put(directory: &Path, name: &str, text: &str) {
        fs::write(directory.join("new"), text).unwrap();
        fs::rename(directory.join("new"), directory.join(name)).unwrap();
    }

    fn sysfs(stat: &str, inflight: &str, iostats: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("queue")).unwrap();
        put(directory.path(), "stat", stat);
        put(directory.path(), "inflight", inflight);
        put(directory.path(), TOLD, iostats);
        directory
    }

    /// A device that was as it should be at first.
    fn counter(iostats: &str) -> (tempfile::TempDir, WriteCounter) {
        let directory = sysfs(UNTOUCHED, "0 0", iostats);
        let counter = WriteCounter::at(directory.path().to_owned(), || Ok(())).unwrap();
        (directory, counter)
    }

    #[test]
    fn reads_and_flushes_are_no_writes() {
        for iostats in ["0", "1\n"] {
            let (directory, counter) = counter(iostats);
            put(directory.path(), "inflight", "       3        0\n");
            counter.check().unwrap();
        }
    }

    #[test]
    fn a_device_that_counts_nothing_is_told_to_or_refused() {
        let directory = sysfs(NOTHING_COUNTED, "0 0", "0");
        let path = directory.path();
        let obedient = || {
            if fs::read_to_string(path.join(TOLD))? == "1" {
                put(path, "stat", UNTOUCHED);
            }
            Ok(())
        };
        WriteCounter::at(path.to_owned(), obedient)
            .unwrap()
            .check()
            .unwrap();
        put(path, "stat", NOTHING_COUNTED);
        assert!(WriteCounter::at(path.to_owned(), || Ok(())).is_err());
    }

    #[test]
    fn whatever_was_written_shows() {
        for (name, text) in [
            ("stat", "12 0 96 4 4 0 8 0 0 8 8 0 0 0 0 3 0"),
            ("stat", "12 0 96 4 3 0 0 0 0 8 8 1 0 128 0 3 0"),
            ("stat", "12 0 96 4 3 0 0 0 0 8 8"),
            ("stat", ""),
            ("stat", "x"),
            ("inflight", "0"),
            (TOLD, "0"),
        ] {
            let (directory, counter) = counter("1");
            counter.check().unwrap();
            put(directory.path(), name, text);
            assert!(counter.check().is_err(), "{name} {text:?}");
        }
        let (directory, counter) = counter("1");
        fs::remove_file(directory.path().join("stat")).unwrap();
        assert!(counter.check().is_err());
    }

    #[test]
    fn a_write_that_is_under_way_is_waited_for() {
        let (directory, counter) = counter("1");
        put(directory.path(), "inflight", "0 1");
        thread::scope(|scope| {
            let checked = scope.spawn(|| counter.check());
            thread::sleep(Duration::from_millis(60));
            put(directory.path(), "inflight", "0 0");
            checked.join().unwrap().unwrap();
        });
        put(directory.path(), "inflight", "0 1");
        assert!(counter.check().is_err());
    }
}
