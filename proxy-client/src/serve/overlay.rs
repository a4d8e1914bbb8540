//! What was written over an image: a sparse file with the units of the volume that differ, and a bitmap of which those are.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use nbd_export::export::ExportError;
use nbd_export::export::limits::ZERO_STEP;
use nix::fcntl::OFlag;
use volmap::layers::Layers;
use volmap::map::Extent;
use volmap::range::ByteRange;
use volmap::storage::{LiveVolume, Zeroing};

use super::overlay_header::{LEN, OverlayHeader, UNIT};
use super::units::{PAGE, Page, Units};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Root, limits::VOLUME_MAX};
use crate::output::PartialFile;

/// What a client is told.
type Answer = std::result::Result<(), ExportError>;

/// Fills a buffer with bytes of the image below, or says why it cannot.
pub(super) type Below<'a> = &'a dyn Fn(ByteRange, &mut [u8]) -> Answer;

/// What an overlay is kept in.
trait Medium: Send + Sync {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    fn write_zeroes(&self, range: ByteRange, how: Zeroing) -> io::Result<()>;

    /// Returns when everything that was written before is durable.
    fn flush(&self) -> io::Result<()>;

    /// What `range` holds, at most `limit` extents from its start on.
    fn extents(&self, range: ByteRange, limit: usize) -> io::Result<Vec<Extent>>;
}

impl Medium for LiveVolume {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes, false)
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.write_zeroes(range, how, false)
    }

    fn flush(&self) -> io::Result<()> {
        self.flush()
    }

    fn extents(&self, range: ByteRange, limit: usize) -> io::Result<Vec<Extent>> {
        self.extents(range, limit)
    }
}

/// An overlay that is open. Any number of threads may call.
pub(crate) struct Overlay {
    header: OverlayHeader,
    medium: Box<dyn Medium>,
    units: RwLock<Units>,
    /// Held where units are made that were not there: whoever fills one up from the image must not write over what another has
    /// written meanwhile.
    making: Mutex<()>,
    /// Held while the bitmap is written: an older page must not come behind a newer one.
    flushing: Mutex<()>,
}

impl Overlay {
    /// Opens the overlay at `path` over an image, or makes an empty one where there is no file.
    ///
    /// # Errors
    /// [`ErrorKind::OutputExists`]: there is a file that is none, or one over another image. [`ErrorKind::TargetBusy`]: somebody uses
    /// it. [`ErrorKind::Io`].
    pub(crate) fn open(path: &Path, size: u64, root: Root) -> Result<Self> {
        let header = OverlayHeader { size, root };
        if size > VOLUME_MAX / 2 {
            return Err(Error::new(ErrorKind::Usage, "the volume is too large for an overlay").at_path(path));
        }
        if std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            create(path, &header)?;
        }
        let failed = |error| Error::io("reading the overlay", path, error);
        // Looked at before it is claimed: what is no overlay is left alone.
        let looked_at = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path);
        match looked_at {
            Ok(file) => check(&file, path, &header)?,
            // Another server's lease, which an open would otherwise wait for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(in_use(path, error)),
            Err(error) => return Err(failed(error)),
        }
        let layers = Layers::new(Vec::new()).map_err(|error| {
            Error::new(ErrorKind::Io, "this system's storage cannot be looked at").caused_by(error)
        })?;
        let volume = LiveVolume::open(path, &layers).map_err(|error| in_use(path, error))?;
        Self::on(Box::new(volume), header).map_err(failed)
    }

    fn on(medium: Box<dyn Medium>, header: OverlayHeader) -> io::Result<Self> {
        let mut units = Units::default();
        for number in 0..header.bitmap_len() / PAGE as u64 {
            let mut page: Page = [0; PAGE];
            medium.read_at(page_at(number), &mut page)?;
            units.put(number, &page);
        }
        Ok(Self {
            header,
            medium,
            units: RwLock::new(units),
            making: Mutex::default(),
            flushing: Mutex::default(),
        })
    }

    /// The first part of `range` that is here, or is not.
    pub(super) fn first_run(&self, range: ByteRange) -> (ByteRange, bool) {
        let units = range.start() / UNIT..range.end().div_ceil(UNIT);
        let (is_here, end) = self.read_units().first_run(&units);
        let end = (end * UNIT).min(range.end());
        (
            ByteRange::from_bounds(range.start(), end).unwrap_or(range),
            is_here,
        )
    }

    fn read_units(&self) -> std::sync::RwLockReadGuard<'_, Units> {
        self.units.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_units(&self) -> std::sync::RwLockWriteGuard<'_, Units> {
        self.units.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are here.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(self.header.data_at() + offset, bytes)
    }

    /// What is here of a range that is: data and holes.
    pub(super) fn extents(&self, range: ByteRange, limit: usize) -> io::Result<Vec<Extent>> {
        let data_at = self.header.data_at();
        let there = ByteRange::new(data_at + range.start(), range.len()).unwrap_or(range);
        let mut extents = self.medium.extents(there, limit)?;
        for extent in &mut extents {
            let start = extent.range.start() - data_at;
            extent.range = ByteRange::new(start, extent.range.len()).unwrap_or(range);
        }
        Ok(extents)
    }

    /// Writes. What is missing of units that are begun comes from the image.
    pub(super) fn write(&self, range: ByteRange, data: &[u8], below: Below<'_>) -> Answer {
        self.change(range, below, |part| {
            let skip = usize::try_from(part.start() - range.start()).expect("a request fits the memory");
            let length = usize::try_from(part.len()).expect("a request fits the memory");
            let at = self.header.data_at() + part.start();
            Ok(self.medium.write_at(at, &data[skip..skip + length])?)
        })
    }

    /// Writes zeroes.
    pub(super) fn write_zeroes(&self, range: ByteRange, how: Zeroing, below: Below<'_>) -> Answer {
        let mut at = range.start();
        while let Some(step) = ByteRange::from_bounds(at, range.end().min(at.saturating_add(ZERO_STEP))) {
            self.change(step, below, |part| self.zero(part, how))?;
            at = step.end();
        }
        Ok(())
    }

    fn zero(&self, part: ByteRange, how: Zeroing) -> Answer {
        let there = ByteRange::new(self.header.data_at() + part.start(), part.len()).unwrap_or(part);
        Ok(self.medium.write_zeroes(there, how)?)
    }

    /// The whole units of a range, as zeroes.
    pub(super) fn trim(&self, range: ByteRange, below: Below<'_>) -> Answer {
        let start = range.start().next_multiple_of(UNIT);
        // The last unit of a volume may be short.
        let end = match range.end() == self.header.size {
            true => range.end(),
            false => range.end() - range.end() % UNIT,
        };
        let how = Zeroing {
            may_punch: true,
            fast: false,
        };
        match ByteRange::from_bounds(start, end) {
            Some(whole) => self.write_zeroes(whole, how, below),
            None => Ok(()),
        }
    }

    /// Has `put` write a range, and takes what is whole for its own.
    fn change(&self, range: ByteRange, below: Below<'_>, put: impl Fn(ByteRange) -> Answer) -> Answer {
        let units = range.start() / UNIT..range.end().div_ceil(UNIT);
        if self.read_units().first_run(&units) == (true, units.end) {
            return put(range);
        }
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        self.complete(units.start, range, below)?;
        if units.end - units.start > 1 {
            self.complete(units.end - 1, range, below)?;
        }
        put(range)?;
        self.write_units().add(units);
        Ok(())
    }

    /// Fills up a unit that is not here, of which `range` covers a part, so that nothing is missing when that part was written.
    fn complete(&self, unit: u64, range: ByteRange, below: Below<'_>) -> Answer {
        let end = ((unit + 1) * UNIT).min(self.header.size);
        let Some(whole) = ByteRange::from_bounds(unit * UNIT, end) else {
            return Ok(());
        };
        let covered = range.start() <= whole.start() && whole.end() <= range.end();
        if covered || self.first_run(whole).1 {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(whole.len()).unwrap_or(0)];
        // Only what is missing: the rest may be what nobody could read, and is about to be something else.
        for (start, end) in [(whole.start(), range.start()), (range.end(), whole.end())] {
            if let Some(missing) = ByteRange::from_bounds(start.max(whole.start()), end.min(whole.end())) {
                let index = |at: u64| usize::try_from(at - whole.start()).unwrap_or(0);
                below(missing, &mut bytes[index(missing.start())..index(missing.end())])?;
            }
        }
        let at = self.header.data_at() + whole.start();
        self.medium.write_at(at, &bytes)?;
        Ok(())
    }

    /// Returns when everything that was written before is durable: first the bytes, then that they are here.
    pub(super) fn flush(&self) -> io::Result<()> {
        let _alone = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self.write_units().take_changed();
        let written = self.write_pages(&changed);
        if written.is_err() {
            let numbers = changed.iter().map(|(number, _)| *number);
            self.write_units().still_changed(numbers);
        }
        written
    }

    fn write_pages(&self, changed: &[(u64, Box<Page>)]) -> io::Result<()> {
        self.medium.flush()?;
        if changed.is_empty() {
            return Ok(());
        }
        for (number, page) in changed {
            self.medium.write_at(page_at(*number), page.as_slice())?;
        }
        self.medium.flush()
    }
}

fn in_use(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = "the overlay cannot be had alone: is another server using it?";
    Error::new(ErrorKind::TargetBusy, message)
        .at_path(path)
        .caused_by(error)
}

fn page_at(number: u64) -> u64 {
    LEN as u64 + number * PAGE as u64
}

/// Makes an empty overlay, which gets its name when it is whole.
fn create(path: &Path, header: &OverlayHeader) -> Result<()> {
    let failed = |error| Error::io("making the overlay", path, error);
    let made = PartialFile::create(path)?;
    made.file().set_len(header.file_len()).map_err(failed)?;
    made.file().write_all_at(&header.encode(), 0).map_err(failed)?;
    made.commit()
}

fn check(file: &File, path: &Path, header: &OverlayHeader) -> Result<()> {
    let refused = |message: &str| {
        Err(Error::new(ErrorKind::OutputExists, message.to_owned()).at_path(PathBuf::from(path)))
    };
    let mut bytes = [0; LEN];
    let found = match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => OverlayHeader::decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        Err(error) => return Err(Error::io("reading the overlay", path, error)),
    };
    let length = file.metadata().map(|metadata| metadata.len());
    match found {
        None => refused("this file is no overlay"),
        Some(found) if found != *header => refused("this overlay was made over another image"),
        Some(_) if length.is_ok_and(|length| length < header.file_len()) => refused("this overlay was cut"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;
    use volmap::map::Content;

    use super::*;

    const VOLUME: u64 = 10 * UNIT + 100;

    /// Storage that loses what was not flushed, each block of it or not, when the machine does.
    #[derive(Clone, Default)]
    struct Fragile(Arc<Mutex<Blocks>>);

    #[derive(Default)]
    struct Blocks {
        durable: BTreeMap<u64, Vec<u8>>,
        written: BTreeMap<u64, Vec<u8>>,
        /// Writes and flushes until the machine stops.
        left: Option<usize>,
    }

    impl Blocks {
        fn block(&self, number: u64) -> Vec<u8> {
            let written = self.written.get(&number).or_else(|| self.durable.get(&number));
            written.cloned().unwrap_or_else(|| vec![0; PAGE])
        }

        fn go_on(&mut self) -> io::Result<()> {
            match &mut self.left {
                Some(0) => return Err(io::Error::other("the machine has stopped")),
                Some(left) => *left -= 1,
                None => {}
            }
            Ok(())
        }
    }

    impl Fragile {
        /// What is there after a crash; a block of those that were written survives if its bit is set.
        fn crashed(&self, survivors: u64) -> Self {
            let blocks = self.0.lock().unwrap();
            let mut durable = blocks.durable.clone();
            for (nth, (number, bytes)) in blocks.written.iter().enumerate() {
                if survivors >> (nth % 64) & 1 == 1 {
                    durable.insert(*number, bytes.clone());
                }
            }
            Self(Arc::new(Mutex::new(Blocks {
                durable,
                ..Blocks::default()
            })))
        }
    }

    impl Medium for Fragile {
        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            let blocks = self.0.lock().unwrap();
            let whole = offset / UNIT..(offset + bytes.len() as u64).div_ceil(UNIT);
            let all: Vec<u8> = whole.flat_map(|number| blocks.block(number)).collect();
            bytes.copy_from_slice(&all[usize::try_from(offset % UNIT).unwrap()..][..bytes.len()]);
            Ok(())
        }

        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let mut blocks = self.0.lock().unwrap();
            blocks.go_on()?;
            let (mut at, mut rest) = (offset, bytes);
            while !rest.is_empty() {
                let skip = usize::try_from(at % UNIT).unwrap();
                let (part, others) = rest.split_at(rest.len().min(PAGE - skip));
                let mut block = blocks.block(at / UNIT);
                block[skip..skip + part.len()].copy_from_slice(part);
                blocks.written.insert(at / UNIT, block);
                (at, rest) = (at + part.len() as u64, others);
            }
            Ok(())
        }

        fn write_zeroes(&self, range: ByteRange, _: Zeroing) -> io::Result<()> {
            self.write_at(range.start(), &vec![0; usize::try_from(range.len()).unwrap()])
        }

        fn flush(&self) -> io::Result<()> {
            let mut blocks = self.0.lock().unwrap();
            blocks.go_on()?;
            let mut written = std::mem::take(&mut blocks.written);
            blocks.durable.append(&mut written);
            Ok(())
        }

        fn extents(&self, range: ByteRange, _: usize) -> io::Result<Vec<Extent>> {
            let content = Content::Data;
            Ok(vec![Extent { range, content }])
        }
    }

    fn header() -> OverlayHeader {
        OverlayHeader {
            size: VOLUME,
            root: Root::from_bytes([0; 32]),
        }
    }

    /// The image: no byte of it is like one that is written.
    fn image(at: u64) -> u8 {
        u8::try_from(at % 100).unwrap()
    }

    fn below(range: ByteRange, bytes: &mut [u8]) -> Answer {
        for (at, byte) in (range.start()..).zip(bytes) {
            *byte = image(at);
        }
        Ok(())
    }

    fn content(overlay: &Overlay) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(VOLUME).unwrap()];
        let mut at = 0;
        while let Some(rest) = ByteRange::from_bounds(at, VOLUME) {
            let (run, is_here) = overlay.first_run(rest);
            let part = &mut bytes[usize::try_from(run.start()).unwrap()..usize::try_from(run.end()).unwrap()];
            match is_here {
                true => overlay.read(run.start(), part).unwrap(),
                false => below(run, part).unwrap(),
            }
            at = run.end();
        }
        bytes
    }

    #[derive(Clone, Debug)]
    enum Act {
        Write(u64, u64, u8),
        Zero(u64, u64),
        Flush,
    }

    fn act() -> impl Strategy<Value = Act> {
        let range = (0..VOLUME, 1..3 * UNIT);
        prop_oneof![
            4 => (range.clone(), 100..=255_u8).prop_map(|((at, length), byte)| Act::Write(at, length, byte)),
            1 => range.prop_map(|(at, length)| Act::Zero(at, length)),
            2 => Just(Act::Flush),
        ]
    }

    const ZEROING: Zeroing = Zeroing {
        may_punch: true,
        fast: false,
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A byte is what it was at the last flush, or what was written to it since: whatever of the file survived.
        #[test]
        fn a_crash_takes_nothing_that_was_flushed_and_invents_nothing(
            acts in prop::collection::vec(act(), 0..12),
            survivors in any::<u64>(),
            left in 0..4_usize,
        ) {
            let medium = Fragile::default();
            let overlay = Overlay::on(Box::new(medium.clone()), header()).unwrap();
            let mut now: Vec<u8> = (0..VOLUME).map(image).collect();
            let mut possible: Vec<Vec<u8>> = now.iter().map(|byte| vec![*byte]).collect();
            for act in acts {
                let (at, length, byte) = match act {
                    Act::Flush => {
                        overlay.flush().unwrap();
                        possible = now.iter().map(|byte| vec![*byte]).collect();
                        continue;
                    }
                    Act::Write(at, length, byte) => (at, length, byte),
                    Act::Zero(at, length) => (at, length, 0),
                };
                let range = ByteRange::from_bounds(at, VOLUME.min(at + length)).unwrap();
                let length = usize::try_from(range.len()).unwrap();
                match byte {
                    0 => overlay.write_zeroes(range, ZEROING, &below).unwrap(),
                    byte => overlay.write(range, &vec![byte; length], &below).unwrap(),
                }
                let start = usize::try_from(range.start()).unwrap();
                now[start..start + length].fill(byte);
                possible[start..start + length].iter_mut().for_each(|bytes| bytes.push(byte));
            }
            prop_assert!(content(&overlay) == now);
            // In the midst of a last flush.
            medium.0.lock().unwrap().left = Some(left);
            if overlay.flush().is_ok() {
                possible = now.iter().map(|byte| vec![*byte]).collect();
            }
            let after = Overlay::on(Box::new(medium.crashed(survivors)), header()).unwrap();
            for (at, byte) in content(&after).iter().enumerate() {
                prop_assert!(possible[at].contains(byte), "{byte} at {at}");
            }
        }
    }

    /// What two write to one unit is all there: who fills it up from the image writes over nothing.
    #[test]
    fn writers_of_one_unit_lose_nothing_to_each_other() {
        for _ in 0..50 {
            let overlay = Overlay::on(Box::new(Fragile::default()), header()).unwrap();
            std::thread::scope(|threads| {
                for nth in 0..4_u64 {
                    let overlay = &overlay;
                    let range = ByteRange::new(nth * 1000, 1000).unwrap();
                    threads.spawn(move || overlay.write(range, &[200; 1000], &below).unwrap());
                }
            });
            assert!(content(&overlay)[..4000].iter().all(|byte| *byte == 200));
        }
    }

    #[test]
    fn what_is_no_overlay_of_this_image_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("overlay");
        let root = |byte| Root::from_bytes([byte; 32]);
        drop(Overlay::open(&path, VOLUME, root(1)).unwrap());
        let refused = |size, root: Root| {
            let before = std::fs::read(&path).unwrap();
            let error = Overlay::open(&path, size, root).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::OutputExists);
            assert!(std::fs::read(&path).unwrap() == before);
        };
        refused(VOLUME, root(2));
        refused(VOLUME + 1, root(1));
        drop(Overlay::open(&path, VOLUME, root(1)).unwrap());
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(8192)
            .unwrap();
        refused(VOLUME, root(1));
        std::fs::write(&path, "precious").unwrap();
        refused(VOLUME, root(1));
    }

    #[test]
    fn one_server_has_it_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("overlay");
        let root = Root::from_bytes([1; 32]);
        let _open = Overlay::open(&path, VOLUME, root).unwrap();
        let again = Overlay::open(&path, VOLUME, root).err().unwrap();
        assert_eq!(again.kind(), ErrorKind::TargetBusy);
    }
}
