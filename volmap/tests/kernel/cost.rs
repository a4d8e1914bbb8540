//! What a map and a witness cost. Not run with the other tests: it wants a quiet machine and an optimised build.
//!
//!     cargo nextest run --release -p volmap --run-ignored only -E 'test(cost::)' --no-capture
//!
//! `COST_EXTENTS` says how many extents (1,000,000). What counts are the ratios.

use std::fs::File;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use volmap::freeze::Method;
use volmap::range::ByteRange;
use volmap::store::StoreGraph;
use volmap::sys::fiemap;

use crate::rig::Rig;

const ROUNDS: usize = 9;
const BLOCK: usize = 1024;

/// What lies between the blocks of a file that are written: every other one.
#[derive(Clone, Copy, Debug)]
enum Between {
    Holes,
    Unwritten,
}

fn extents_wanted() -> u64 {
    std::env::var("COST_EXTENTS").map_or(1_000_000, |text| text.parse().unwrap())
}

fn write(path: &Path, between: Between, written: u64) {
    let file = File::create(path).unwrap();
    if matches!(between, Between::Unwritten) {
        let len = i64::try_from(2 * written * BLOCK as u64).unwrap();
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, len).unwrap();
    }
    for index in 0..written {
        file.write_all_at(&[1; BLOCK], 2 * index * BLOCK as u64).unwrap();
    }
    file.sync_all().unwrap();
}

/// Bytes of memory that this process has; of its code, whatever is used for the first time comes in meanwhile, and is not counted.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn took(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

// A process for each: memory that an earlier map gave back would not be counted.

#[test]
#[ignore = "a benchmark: it takes minutes, and says nothing on a busy machine"]
fn map_and_witness_with_holes_between() {
    map_and_witness("cost::map_and_witness_with_holes_between", Between::Holes);
}

#[test]
#[ignore = "a benchmark: it takes minutes, and says nothing on a busy machine"]
fn map_and_witness_with_unwritten_between() {
    map_and_witness("cost::map_and_witness_with_unwritten_between", Between::Unwritten);
}

fn map_and_witness(name: &'static str, between: Between) {
    let Some(rig) = Rig::new(name, 2200, &["mkfs.ext4", "-q", "-b", "1024"]) else {
        return;
    };
    let path = rig.mount.join("volume");
    write(&path, between, extents_wanted());

    let before = resident();
    let image = rig.freeze(&path, Method::Quiesce).unwrap();
    let held = resident() - before;
    let somewhere = ByteRange::new(image.size() / 2, 4096).unwrap();
    let times = 20_000;
    let checks = took(|| (0..times).for_each(|_| drop(black_box(image.status(somewhere, 8).unwrap()))));
    image.thaw();

    let file = File::open(&path).unwrap();
    let layers = rig.layers();
    let (mut alone, mut mapped, mut counted) = (Vec::new(), Vec::new(), 0_u64);
    for _ in 0..ROUNDS {
        counted = 0;
        alone.push(took(|| {
            fiemap::visit_extents(&file, |extent| {
                black_box(extent);
                counted += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        }));
        mapped.push(took(|| {
            let mut graph = StoreGraph::new();
            black_box(layers.map(&mut graph, &file, &path).unwrap());
        }));
    }
    let ratios = alone.iter().zip(&mapped);
    let mut ratios: Vec<f64> = ratios.map(|(a, m)| m.as_secs_f64() / a.as_secs_f64()).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let holes = match between {
        Between::Holes => counted,
        Between::Unwritten => 0,
    };
    println!("{between:?} between: FIEMAP tells {counted} extents, and {holes} holes are between them");
    println!(
        "  map: {:.2} times FIEMAP, {:.2} to {:.2} (target 1.2)",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
    println!(
        "  memory: {:.1} bytes an extent of the map (target 32)",
        held as f64 / (counted + holes) as f64
    );
    println!("  a status, with its witnesses: {:?}", checks / times);
}
