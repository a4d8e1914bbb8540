//! What copy-before-write costs, on real files: not run by default, prints tables.
//!
//! `COW_BENCH=/a/directory/on/a/disk cargo test -p volmap --release -- --ignored --nocapture cow::tests::cost`

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::cow::tests::model::Dice;
use crate::cow::{CopyAreaSpec, CopyOptions, CopyUnit, OnFull, Origin, Storage};
use crate::generation::GenerationClock;
use crate::layers::Layers;
use crate::limits::COPY_AREA_HEADER;
use crate::range::ByteRange;
use crate::storage::{AlignedBuffer, Backing};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 512 * MIB;
const ROUNDS: usize = 5;
const BLOCK: u64 = 4096;
const WRITES: u64 = 3000;
const THREADS: u64 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pattern {
    /// 4 KiB anywhere.
    Random,
    /// 4 KiB, most of them in a tenth of the volume.
    Hot,
    /// 4 KiB one after another.
    Sequential,
    /// 256 KiB one after another.
    LongSequential,
}

impl Pattern {
    fn write(self, dice: &mut Dice, thread: u64, nth: u64) -> (u64, u64) {
        let share = SIZE / THREADS;
        match self {
            Self::Random => (dice.roll(SIZE / BLOCK) * BLOCK, BLOCK),
            Self::Hot if dice.roll(10) == 0 => (dice.roll(SIZE / BLOCK) * BLOCK, BLOCK),
            Self::Hot => (dice.roll(SIZE / BLOCK / 10) * BLOCK, BLOCK),
            Self::Sequential => (thread * share + nth * BLOCK % share, BLOCK),
            Self::LongSequential => (thread * share + nth * (64 * BLOCK) % share, 64 * BLOCK),
        }
    }

    /// Writes of each thread.
    fn count(self) -> u64 {
        if self == Self::LongSequential { 256 } else { WRITES }
    }
}

/// A copy area whose slots could be found again after a crash: data on stable storage before the entry that tells of it, and that
/// before the origin changes.
struct Indexed(Box<dyn Backing>);

impl Backing for Indexed {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn punch_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch_at(offset, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write_through_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_through_at(offset, data)?;
        self.0.sync_data()?;
        self.0.write_through_at(BLOCK, &AlignedBuffer::zeroed(4096))?;
        self.0.sync_data()
    }
}

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        // Beside the test itself, which is on a disk, and where nobody looks for sources.
        let test = std::env::current_exe().unwrap();
        let base =
            std::env::var_os("COW_BENCH").map_or_else(|| test.parent().unwrap().to_owned(), Into::into);
        let dir = tempfile::tempdir_in(base).unwrap();
        let origin = File::create(dir.path().join("origin")).unwrap();
        for at in (0..SIZE).step_by(MIB as usize) {
            origin
                .write_all_at(&vec![(at / MIB) as u8 | 1; MIB as usize], at)
                .unwrap();
        }
        origin.sync_all().unwrap();
        Self { dir }
    }

    fn open(&self, unit: CopyUnit, indexed: bool) -> Arc<Origin> {
        let path = |name: &str| self.dir.path().join(name);
        let spec = CopyAreaSpec {
            path: path("copies"),
            size: Some(SIZE + COPY_AREA_HEADER),
            on_full: OnFull::Break,
        };
        let storage = Storage::open(
            Path::new(&path("origin")),
            &spec,
            Arc::new(Layers::new(Vec::new()).unwrap()),
        )
        .unwrap();
        let copy_area = if indexed {
            Box::new(Indexed(storage.copy_area))
        } else {
            storage.copy_area
        };
        let clock = Arc::new(GenerationClock::start().unwrap());
        let options = CopyOptions {
            unit,
            ..CopyOptions::default()
        };
        Origin::with_backings(storage.origin, copy_area, storage.ground, clock, options).unwrap()
    }
}

/// Writes a second, of all threads.
fn write(live: &Origin, pattern: Pattern, fua: bool, seed: u64) -> f64 {
    let count = if fua {
        pattern.count() / 10
    } else {
        pattern.count()
    };
    let begun = Instant::now();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut dice = Dice(seed * 64 + thread + 1);
                for nth in 0..count {
                    let (offset, len) = pattern.write(&mut dice, thread, nth);
                    live.write_at(offset, &vec![nth as u8; len as usize], fua)
                        .unwrap();
                }
            });
        }
    });
    (count * THREADS) as f64 / begun.elapsed().as_secs_f64()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

struct Cost {
    plain: f64,
    frozen: f64,
    copied: f64,
    extents: usize,
}

fn measure(site: &Site, unit: CopyUnit, indexed: bool, pattern: Pattern, fua: bool) -> Cost {
    let (mut plain, mut frozen, mut copied, mut extents) = (Vec::new(), Vec::new(), 0.0, 0);
    for round in 0..ROUNDS as u64 {
        let live = site.open(unit, indexed);
        live.flush().unwrap();
        plain.push(write(&live, pattern, fua, round + 1));
        let image = live.freeze().unwrap();
        frozen.push(write(&live, pattern, fua, round + 101));
        let written = if fua {
            pattern.count() / 10
        } else {
            pattern.count()
        } * THREADS;
        let bytes = written
            * if pattern == Pattern::LongSequential {
                64 * BLOCK
            } else {
                BLOCK
            };
        copied = live.copy_area_use().used as f64 / bytes as f64;
        extents = image
            .status(ByteRange::new(0, SIZE).unwrap(), usize::MAX)
            .unwrap()
            .extents
            .len();
        image.thaw();
    }
    Cost {
        plain: median(plain),
        frozen: median(frozen),
        copied,
        extents,
    }
}

#[test]
#[ignore = "a measurement: minutes, and a disk of its own"]
fn copy_units() {
    let site = Site::new();
    eprintln!(
        "| unit | writes | writes/s plain | writes/s frozen | ratio | bytes copied a byte written | extents |"
    );
    eprintln!("|---|---|---|---|---|---|---|");
    for (pattern, fua) in [
        (Pattern::Random, false),
        (Pattern::Hot, false),
        (Pattern::Sequential, false),
        (Pattern::LongSequential, false),
        (Pattern::Random, true),
    ] {
        for unit in [4, 16, 32, 64, 128, 256, 1024] {
            let cost = measure(&site, CopyUnit::new(unit << 10).unwrap(), false, pattern, fua);
            eprintln!(
                "| {unit} KiB | {pattern:?}{} | {:.0} | {:.0} | {:.3} | {:.1} | {} |",
                if fua { ", FUA" } else { "" },
                cost.plain,
                cost.frozen,
                cost.frozen / cost.plain,
                cost.copied,
                cost.extents
            );
        }
    }
}

#[test]
#[ignore = "a measurement: minutes, and a disk of its own"]
fn persistent_index() {
    let site = Site::new();
    eprintln!("| writes | index | writes/s plain | writes/s frozen | ratio |");
    eprintln!("|---|---|---|---|---|");
    for (pattern, fua) in [
        (Pattern::Random, false),
        (Pattern::LongSequential, false),
        (Pattern::Random, true),
    ] {
        for indexed in [false, true] {
            let cost = measure(&site, CopyUnit::default(), indexed, pattern, fua);
            eprintln!(
                "| {pattern:?}{} | {indexed} | {:.0} | {:.0} | {:.3} |",
                if fua { ", FUA" } else { "" },
                cost.plain,
                cost.frozen,
                cost.frozen / cost.plain
            );
        }
    }
}
