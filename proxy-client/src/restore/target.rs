//! The target of a restore: a new file, an existing file, or a block device.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::OFlag;
use volmap::range::ByteRange;
use volmap::sys::{block_device, file_system};

use super::{in_use, signature};
use crate::error::{Error, ErrorKind, Result};
use crate::file_id::FileId;
use crate::output::PartialFile;

/// Zeroes that are written at once.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// From here on zeroes are asked of the device instead of being sent to it.
const ZERO_RANGE_MIN: u64 = 1 << 20;

/// Zeroes asked of a device in one call: long enough, and an interrupt is not kept waiting.
const ZERO_RANGE_STEP: u64 = 1 << 30;

/// Alignment that every device takes for zeroing.
const ZERO_RANGE_ALIGN: u64 = 4096;

/// What happens to zeroes.
#[derive(Debug)]
enum Zeroes {
    /// They are there already: the file was just created or emptied.
    Skip,
    /// The target holds old data, and whoever can makes zeroes of it: a place in [`BY_DEVICE`], or after them we.
    Write { by: AtomicUsize },
}

/// Makes bytes of a device zero.
type ZeroByDevice = fn(&File, u64, u64) -> io::Result<()>;

/// How a device is asked for zeroes, the best way first: giving the space back, where it promises that zeroes are read from there (a
/// thin volume would otherwise be filled by the holes of the image); or without that. Either is refused where the promise cannot
/// be made, unlike a discard. See `blkdev_fallocate` in Linux' block/fops.c.
const BY_DEVICE: [ZeroByDevice; 2] = [file_system::punch_hole, file_system::zero_range];

#[derive(Debug)]
enum Place {
    /// Appears under its name when it is whole.
    New(PartialFile),
    /// There before.
    Existing(File),
}

/// An opened target with room for the volume.
#[derive(Debug)]
pub(crate) struct Target {
    place: Place,
    path: PathBuf,
    zeroes: Zeroes,
    /// Bytes that fit; `None`: a file, which grows.
    room: Option<u64>,
    left_alone: u64,
}

impl Target {
    /// Opens a target for `size` bytes, as far as that is known, that are read from `source`, if that is a file. An existing
    /// file or device is taken only with `force` if it is not empty; a file is emptied then.
    ///
    /// # Errors
    /// `TargetNotEmpty`, `TargetBusy`, `TargetTooSmall`, `TargetUnfit`, `OutputIsSource`, `OutputExists`, `Io`.
    pub(crate) fn open(path: &Path, size: Option<u64>, force: bool, source: Option<FileId>) -> Result<Self> {
        let size = size.unwrap_or(0);
        match fs::metadata(path) {
            Ok(metadata) if Some(FileId::of(&metadata)) == source => {
                Err(Error::new(ErrorKind::OutputIsSource, "this is the source itself").at_path(path))
            }
            Ok(metadata) if shares_bytes(&metadata, source) => {
                let message = "one of source and target is a partition of the other";
                Err(Error::new(ErrorKind::OutputIsSource, message).at_path(path))
            }
            Ok(metadata) if metadata.is_file() => Self::existing_file(path, size, force),
            Ok(metadata) if metadata.file_type().is_block_device() => {
                Self::device(path, size, force, &metadata)
            }
            Ok(_) => Err(Error::new(
                ErrorKind::TargetUnfit,
                "this is neither a file nor a block device",
            )
            .at_path(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::new_file(path, size),
            Err(error) => Err(Error::io("looking at the target", path, error)),
        }
    }

    fn new_file(path: &Path, size: u64) -> Result<Self> {
        let partial = PartialFile::create(path)?;
        partial
            .file()
            .set_len(size)
            .map_err(|error| Error::io("sizing the target", path, error))?;
        Ok(Self {
            place: Place::New(partial),
            path: path.into(),
            zeroes: Zeroes::Skip,
            room: None,
            left_alone: 0,
        })
    }

    fn existing_file(path: &Path, size: u64, force: bool) -> Result<Self> {
        let failed = |error| Error::io("opening the target", path, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if let Some(device) = in_use::loop_device_on(FileId::of(&metadata)) {
            return Err(busy(format!("loop device {device} stands on it"), path));
        }
        lock(&file, path)?;
        if in_use::is_open_elsewhere(&file) {
            return Err(busy("another process has it open".into(), path));
        }
        if metadata.len() > 0 && !force {
            return Err(Error::new(ErrorKind::TargetNotEmpty, "the file is not empty").at_path(path));
        }
        // Emptied, not overwritten: no old byte survives under a hole. That it can be as long as the volume is found out before; it
        // gets its length when it is whole, so that one that was given up does not look as if it were.
        file.set_len(size.max(metadata.len()))
            .and_then(|()| file.set_len(0))
            .map_err(|error| Error::io("sizing the target", path, error))?;
        Ok(Self {
            place: Place::Existing(file),
            path: path.into(),
            zeroes: Zeroes::Skip,
            room: None,
            left_alone: 0,
        })
    }

    fn device(path: &Path, size: u64, force: bool, metadata: &Metadata) -> Result<Self> {
        let failed = |error| Error::io("opening the target", path, error);
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
        if let Some(point) = in_use::mount_point(metadata.rdev(), &mountinfo) {
            return Err(busy(format!("it is mounted on {point}"), path));
        }
        // Keeps out, and is kept out by, mounts, LVM, md and swap.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_EXCL.bits())
            .open(path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::ResourceBusy => busy(
                    "the kernel uses it (a mount, a volume group, an array, swap)".into(),
                    path,
                ),
                _ => failed(error),
            })?;
        lock(&file, path)?;
        if block_device::is_read_only(&file).map_err(failed)? {
            let message =
                "this kernel keeps it read-only, as a backup does with a LUN; blockdev --setrw ends that";
            return Err(busy(message.into(), path));
        }
        if let Some(lun) = in_use::locked_file_under(metadata.rdev()) {
            let message = format!("it stands on {}, which is being read as a LUN", lun.display());
            return Err(busy(message, path));
        }
        let device_size = block_device::size(&file).map_err(failed)?;
        Self::overwriting(file, path, size, device_size, force)
    }

    /// A target that is overwritten in place, whatever lies on it.
    fn overwriting(file: File, path: &Path, size: u64, target_size: u64, force: bool) -> Result<Self> {
        let Some(left_alone) = target_size.checked_sub(size) else {
            return Err(Error::new(
                ErrorKind::TargetTooSmall,
                format!("the volume has {size} bytes, the target {target_size}"),
            )
            .at_path(path));
        };
        if !force {
            let failed = |error| Error::io("looking at the target", path, error);
            let looked_at = target_size.min(signature::LOOKED_AT);
            let look = |at| {
                let mut bytes = vec![0; usize::try_from(looked_at).unwrap_or(usize::MAX)];
                file.read_exact_at(&mut bytes, at).map(|()| bytes)
            };
            let first = look(0).map_err(failed)?;
            let last = look(target_size - looked_at).map_err(failed)?;
            if let Some(what) = signature::find(&first, &last, target_size) {
                return Err(Error::new(ErrorKind::TargetNotEmpty, format!("it holds {what}")).at_path(path));
            }
        }
        Ok(Self {
            place: Place::Existing(file),
            path: path.into(),
            zeroes: Zeroes::Write {
                by: AtomicUsize::new(0),
            },
            room: Some(target_size),
            left_alone,
        })
    }

    /// Whether what is not written is zero.
    pub(crate) fn is_zero_already(&self) -> bool {
        matches!(self.zeroes, Zeroes::Skip)
    }

    /// Believes the operator that a device holds nothing but zeroes.
    pub(crate) fn trust_to_be_zero(&mut self) {
        self.zeroes = Zeroes::Skip;
    }

    /// Bytes of the target behind the volume, which stay as they are.
    pub(crate) fn left_alone(&self) -> u64 {
        self.left_alone
    }

    /// Whether it was there before, so that a failed restore leaves it behind.
    pub(crate) fn is_existing(&self) -> bool {
        matches!(self.place, Place::Existing(_))
    }

    fn file(&self) -> &File {
        match &self.place {
            Place::New(partial) => partial.file(),
            Place::Existing(file) => file,
        }
    }

    /// Writes bytes of the volume.
    pub(crate) fn write(&self, range: ByteRange, bytes: &[u8]) -> Result<()> {
        self.check_room(range)?;
        self.file()
            .write_all_at(bytes, range.start())
            .map_err(|error| Error::io("writing the target", &self.path, error).in_range(range))
    }

    /// Makes bytes of the volume zero.
    pub(crate) fn zero(&self, range: ByteRange) -> Result<()> {
        self.check_room(range)?;
        let Zeroes::Write { by } = &self.zeroes else {
            return Ok(());
        };
        let start = range.start().next_multiple_of(ZERO_RANGE_ALIGN);
        let end = range.end() - range.end() % ZERO_RANGE_ALIGN;
        let Some(inner) = ByteRange::from_bounds(start, end).filter(|inner| inner.len() >= ZERO_RANGE_MIN)
        else {
            return self.write_zeroes(range);
        };
        for outer in [
            ByteRange::from_bounds(range.start(), inner.start()),
            ByteRange::from_bounds(inner.end(), range.end()),
        ] {
            outer.map_or(Ok(()), |outer| self.write_zeroes(outer))?;
        }
        let mut at = inner.start();
        while let Some(left) = ByteRange::from_bounds(at, inner.end()) {
            let way = by.load(Ordering::Relaxed);
            let Some(zero) = BY_DEVICE.get(way) else {
                return self.write_zeroes(left);
            };
            let step = left.len().min(ZERO_RANGE_STEP);
            match zero(self.file(), at, step) {
                Ok(()) => at += step,
                Err(error) => {
                    tracing::debug!(path = %self.path.display(), %error, way, "the device makes no zeroes this way");
                    by.fetch_max(way + 1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// A stream may turn out to be longer than the target.
    pub(crate) fn check_room(&self, range: ByteRange) -> Result<()> {
        match self.room {
            Some(room) if range.end() > room => {
                let message = format!("the source has more than the {room} bytes of the target");
                Err(Error::new(ErrorKind::TargetTooSmall, message).at_path(&self.path))
            }
            _ => Ok(()),
        }
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        let mut at = range.start();
        while let Some(left) = ByteRange::from_bounds(at, range.end()) {
            let step = usize::try_from(left.len()).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.write(left, &ZEROES[..step])?;
            at += step as u64;
        }
        Ok(())
    }

    /// After the last byte of a good source of `size` bytes: makes everything durable, and gives a new file its name.
    pub(crate) fn finish(self, size: u64) -> Result<()> {
        if self.room.is_none() {
            // A stream says only now how long it is, and it may end with zeroes.
            self.file()
                .set_len(size)
                .map_err(|error| Error::io("sizing the target", &self.path, error))?;
        }
        match self.place {
            Place::New(partial) => partial.commit(),
            Place::Existing(file) => file
                .sync_all()
                .map_err(|error| Error::io("making the target durable", &self.path, error)),
        }
    }
}

fn shares_bytes(target: &Metadata, source: Option<FileId>) -> bool {
    match (FileId::of(target), source) {
        (FileId::Device(target), Some(FileId::Device(source))) => in_use::is_part_of_other(target, source),
        _ => false,
    }
}

fn busy(message: String, path: &Path) -> Error {
    Error::new(ErrorKind::TargetBusy, message).at_path(path)
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match in_use::lock(file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(busy(
            "another process holds its lock: it is a LUN that is being read, or the target of another restore"
                .into(),
            path,
        )),
        Err(error) => Err(Error::io("locking the target", path, error)),
    }
}

#[cfg(test)]
mod tests;
