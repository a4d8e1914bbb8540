//! NBD readers of a frozen image race the writers of its origin.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tests::ambush::Ambush;
use tests::cow::backing::{Operation, Side};
use tests::cow::client::Client;
use tests::cow::hold::Hold;
use tests::cow::log::Log;
use tests::cow::volume::assert_same;
use tests::cow::world::{Frozen, Given, Stage, VOLUME, World};
use tests::cow::writers::{Random, Writers};
use tests::{needs, needs_loop_devices};
use volmap::limits::COPY_UNIT;

use super::{ALL_UNITS, KINDS, MIB, SIZE, strike};

const ALLOCATION: &str = "base:allocation";

fn clients(world: &World, count: usize) -> Vec<Client> {
    (0..count).map(|_| world.writer()).collect()
}

/// Stops readers at the end of a scope, also where that comes by a failure.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Random ranges through one connection, until `stop`; and all of it once at least.
fn read_at_random(world: &World, frozen: &Frozen, seed: u64, stop: &AtomicBool) {
    let client = world.reader(&frozen.export, &[]).unwrap();
    let mut random = Random::new(seed);
    assert_same(&client.read_all().unwrap(), &frozen.content, "read at first");
    while !stop.load(Ordering::Relaxed) {
        let offset = random.below(SIZE);
        let len = (random.below(3 * COPY_UNIT) + 1).min(SIZE - offset);
        let read = client.read(offset, len).unwrap();
        let (start, end) = (
            usize::try_from(offset).unwrap(),
            usize::try_from(offset + len).unwrap(),
        );
        assert_same(&read, &frozen.content[start..end], &format!("read at {offset}"));
    }
}

/// What others make of a frozen image.
fn read_by_strangers(world: &World, frozen: &Frozen) {
    let oracle = world.scratch("oracle");
    fs::write(&oracle, &frozen.content).unwrap();
    let uri = world.uri(&frozen.export).to_string();
    let succeed = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    };
    let compare = ["compare", "-f", "raw", "-F", "raw", &uri];
    succeed(Command::new("qemu-img").args(compare).arg(&oracle));
    let copied = world.scratch("copied");
    succeed(Command::new("nbdcopy").arg(&uri).arg(&copied));
    assert_same(&fs::read(&copied).unwrap(), &frozen.content, "nbdcopy");
    for path in [oracle, copied] {
        fs::remove_file(path).unwrap();
    }
}

fn readers_race_writers(stage: Stage) {
    let world = World::open(stage, SIZE, ALL_UNITS);
    let writers = Writers::start(clients(&world, 3), 2, false);
    for round in 0..2 {
        writers.await_requests(50);
        let paused = writers.pause();
        let frozen = world.freeze(&round.to_string());
        let allocation = world.reader(&frozen.export, &[ALLOCATION]).unwrap();
        let at_the_freeze = allocation.status().unwrap();
        drop(paused);

        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|seed| {
                    let (world, frozen, stop) = (&world, &frozen, &stop);
                    scope.spawn(move || read_at_random(world, frozen, seed, stop))
                })
                .collect();
            let stopped = Stop(&stop);
            read_by_strangers(&world, &frozen);
            writers.await_requests(200);
            drop(stopped);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
        assert!(
            at_the_freeze.iter().any(|(_, status)| *status != 0),
            "there are holes: {at_the_freeze:?}"
        );
        assert_eq!(allocation.status().unwrap(), at_the_freeze);
        let later = world.reader(&frozen.export, &[ALLOCATION]).unwrap();
        assert_eq!(later.status().unwrap(), at_the_freeze);
        world.thaw(&frozen);
    }
    assert!(writers.stop() > 0);
    let live = world.reader(VOLUME, &[]).unwrap().read_all().unwrap();
    assert_same(&live, &world.oracle.content(), "the live volume");
}

#[test]
fn nbd_readers_get_the_frozen_bytes_whatever_is_written() {
    needs!("qemu-img", "nbdcopy");
    readers_race_writers(Stage::TwoDisks);
}

#[test]
fn nbd_readers_get_the_frozen_bytes_on_a_shared_lun() {
    needs_loop_devices!("mkfs.xfs", "qemu-img", "nbdcopy");
    readers_race_writers(Stage::SharedLun);
}

/// Holds a reader of the frozen image at its read of the origin, and lets writers go all over the volume meanwhile.
#[test]
fn a_reader_that_is_overtaken_by_writers_gets_the_frozen_bytes() {
    let world = World::open(Stage::TwoDisks, SIZE, ALL_UNITS);
    let writer = world.writer();
    for (round, kind) in KINDS.into_iter().enumerate() {
        for done in [false, true] {
            strike(&writer, tests::cow::log::Kind::Write(*b"original"));
            let frozen = world.freeze(&format!("{round}-{done}"));
            let reader = world.reader(&frozen.export, &[]).unwrap();
            let hold = Hold::new();
            let point = hold.point();
            world.hooks.set(move |moment| {
                let read = moment.side == Side::Origin && moment.operation == Operation::Read;
                if read && moment.done == done && moment.len == MIB {
                    point.pass();
                }
            });
            let content = thread::scope(|scope| {
                let read = scope.spawn(|| reader.read_all().unwrap());
                hold.wait();
                strike(&writer, kind);
                hold.release();
                read.join().unwrap()
            });
            assert_same(&content, &frozen.content, "overtaken");
            world.hooks.clear();
            world.thaw(&frozen);
        }
    }
}

/// One writer's share of a frozen image whose freeze met its requests in flight: all that was replied to before is
/// there, nothing that was sent after it is, and of what was in flight a beginning, each request whole or not at all.
fn replay_to_the_freeze(content: &mut [u8], frozen: &[u8], log: &Log, replied: usize, sent: usize) {
    let candidates = log.first(sent);
    let ranges: BTreeSet<(usize, usize)> = candidates[replied..]
        .iter()
        .map(|c| {
            let start = usize::try_from(c.offset).unwrap();
            (start, start + usize::try_from(c.len).unwrap())
        })
        .collect();
    let is_so = |content: &[u8]| ranges.iter().all(|&(a, b)| content[a..b] == frozen[a..b]);
    for change in &candidates[replied..] {
        if is_so(content) {
            break;
        }
        change.apply(content);
    }
    assert!(is_so(content), "no beginning of {:?}", &candidates[replied..]);
}

#[test]
fn a_freeze_among_writes_in_flight_takes_each_of_them_whole_or_not_at_all() {
    needs!("zstd");
    let world = World::open(Stage::TwoDisks, SIZE, ALL_UNITS);
    let writers = Writers::start(clients(&world, 4), 3, false);
    let logs = world.oracle.logs();
    let mut in_flight = 0;
    for round in 0..4 {
        let paused = writers.pause();
        let mut oracle = world.oracle.content();
        drop(paused);
        writers.await_requests(40);
        let before: Vec<_> = logs.iter().map(|log| log.extent()).collect();
        let export = world
            .host
            .freeze(VOLUME, Some(&round.to_string()))
            .unwrap()
            .remove(0)
            .export;
        let after: Vec<_> = logs.iter().map(|log| log.extent()).collect();

        // Whoever reads it first says what it is; everybody agrees for ever.
        let content = world.reader(&export, &[]).unwrap().read_all().unwrap();
        for (log, (before, after)) in logs.iter().zip(before.iter().zip(&after)) {
            for change in log.first(before.replied) {
                change.apply(&mut oracle);
            }
            replay_to_the_freeze(&mut oracle, &content, log, before.replied, after.sent);
            in_flight += after.sent - before.replied;
        }
        assert_same(&content, &oracle, "frozen among writes");
        let frozen = Frozen { export, content };
        if round == 0 {
            let ambush = Ambush::never();
            let (_, image) = world.backup(&frozen.export, Given::All, &ambush).unwrap();
            world.assert_restores(&image, &frozen);
        }
        let again = world.reader(&frozen.export, &[]).unwrap().read_all().unwrap();
        assert_same(&again, &frozen.content, "read again");
        world.thaw(&frozen);
    }
    assert!(in_flight > 0, "no freeze met a write in flight");
    writers.stop();
}
