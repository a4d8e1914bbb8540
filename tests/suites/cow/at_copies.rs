//! The host's own writer is held at each step of a copy, while the proxy reads and validates.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use proxy_client::report::BackupReport;
use tests::ambush::{Ambush, Point};
use tests::cow::backing::{Moment, Operation, Side};
use tests::cow::client::Client;
use tests::cow::hold::Hold;
use tests::cow::log::{Change, Kind};
use tests::cow::world::{Given, Stage, World};
use tests::{needs, needs_loop_devices};
use volmap::limits::COPY_UNIT;

use super::{ALL_UNITS, KINDS, MIB, SIZE};

/// Parts of two units, and the one between; in the first batch.
pub(super) const OFFSET: u64 = 2 * MIB + 1000;
pub(super) const LEN: u64 = 2 * COPY_UNIT;
/// What is copied for it.
const COPIED_FROM: u64 = 2 * MIB;
const COPIED: u64 = 3 * COPY_UNIT;

/// Steps of a copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Step {
    BeforeOldRead,
    AfterOldRead,
    // The copy is complete and the switch has not begun.
    Copied,
    // The location has switched and nothing is written yet.
    Switched,
    // The origin has changed and nobody was told that the request is done.
    Written,
}

pub(super) const STEPS: [Step; 5] = [
    Step::BeforeOldRead,
    Step::AfterOldRead,
    Step::Copied,
    Step::Switched,
    Step::Written,
];

impl Step {
    pub(super) fn is_at(self, moment: Moment) -> bool {
        let old_data = moment.side == Side::Origin
            && moment.operation == Operation::Read
            && (moment.offset, moment.len) == (COPIED_FROM, COPIED);
        let write =
            moment.side == Side::Origin && moment.operation == Operation::Write && moment.offset == OFFSET;
        let copied = moment.operation == Operation::WriteThrough && moment.len == COPIED;
        match self {
            Self::BeforeOldRead => old_data && !moment.done,
            Self::AfterOldRead => old_data && moment.done,
            Self::Copied => copied && moment.done,
            Self::Switched => write && !moment.done,
            Self::Written => write && moment.done,
        }
    }

    /// Whether the proxy can see the new mapping.
    fn is_switched(self) -> bool {
        self >= Self::Switched
    }
}

/// A writer on its way through a copy.
struct Writing {
    hold: Hold,
    request: JoinHandle<()>,
}

impl Writing {
    /// Returns when the writer is held at `step`.
    fn begin(world: &World, writer: &Arc<Client>, kind: Kind, step: Step) -> Self {
        let hold = hold_at(world, step);
        let request = request(writer, kind);
        hold.wait();
        Self { hold, request }
    }

    /// Returns when the request is replied to.
    fn finish(self) {
        self.hold.release();
        self.request.join().unwrap();
    }
}

fn hold_at(world: &World, step: Step) -> Hold {
    let hold = Hold::new();
    let point = hold.point();
    world.hooks.set(move |moment| {
        if step.is_at(moment) {
            point.pass();
        }
    });
    hold
}

fn request(writer: &Arc<Client>, kind: Kind) -> JoinHandle<()> {
    let writer = Arc::clone(writer);
    thread::spawn(move || {
        let (offset, len) = (OFFSET, LEN);
        writer.change(Change { offset, len, kind });
    })
}

/// Held before the map was asked for, and let go when everything is done.
fn held_all_the_time(world: &World, writer: &Arc<Client>, kind: Kind, step: Step, id: &str) {
    let frozen = world.freeze(id);
    let writing = Writing::begin(world, writer, kind, step);
    let ambush = Ambush::never();
    let (report, image) = world.backup(&frozen.export, Given::All, &ambush).unwrap();
    assert_eq!(report.bytes_moved, 0, "nothing moves while the writer is held");
    assert_direct(&report);
    writing.finish();
    world.assert_restores(&image, &frozen);
    world.thaw(&frozen);
}

/// Held before the map was asked for, and done between a read and its validation.
fn let_go_after_a_read(world: &World, writer: &Arc<Client>, kind: Kind, step: Step, id: &str) {
    let frozen = world.freeze(id);
    let writing = Mutex::new(Some(Writing::begin(world, writer, kind, step)));
    let ambush = Ambush::new(Point::AfterRead, 0, move || {
        let writing = writing.lock().unwrap().take();
        writing.unwrap().finish();
    });
    let (report, image) = world.backup(&frozen.export, Given::All, &ambush).unwrap();
    assert!(ambush.has_sprung());
    let moves = if step.is_switched() { 0 } else { COPIED };
    assert_eq!(report.bytes_moved, moves);
    assert_direct(&report);
    world.assert_restores(&image, &frozen);
    world.thaw(&frozen);
}

/// Begun when the map was known, and held while everything is read and validated.
fn begun_after_the_map(world: &World, writer: &Arc<Client>, kind: Kind, step: Step, id: &str) {
    let frozen = world.freeze(id);
    let hold = Arc::new(hold_at(world, step));
    let request = Arc::new(Mutex::new(None));
    let ambush = {
        let (writer, hold, request) = (Arc::clone(writer), Arc::clone(&hold), Arc::clone(&request));
        Ambush::new(Point::BeforeRead, 0, move || {
            *request.lock().unwrap() = Some(self::request(&writer, kind));
            hold.wait();
        })
    };
    let done = world.backup(&frozen.export, Given::All, &ambush);
    hold.release();
    request.lock().unwrap().take().unwrap().join().unwrap();
    let (report, image) = done.unwrap();
    let moves = if step.is_switched() { COPIED } else { 0 };
    assert_eq!(report.bytes_moved, moves);
    assert_direct(&report);
    world.assert_restores(&image, &frozen);
    world.thaw(&frozen);
}

/// Every byte was got direct, from the origin or from the copy area.
fn assert_direct(report: &BackupReport) {
    assert_eq!(report.bytes_nbd, 0, "{report:?}");
    assert_eq!(report.bytes_remapped_direct, report.bytes_moved, "{report:?}");
    assert!(report.validations > 0, "{report:?}");
}

type Race = fn(&World, &Arc<Client>, Kind, Step, &str);

/// The race at every step of a copy, for every kind of request.
fn at_every_step(stage: Stage, race: Race) {
    let world = World::open(stage, SIZE, ALL_UNITS);
    let writer = Arc::new(world.writer());
    for (index, kind) in KINDS.into_iter().enumerate() {
        for step in STEPS {
            eprintln!("{kind:?} {step:?}");
            let (offset, len) = (OFFSET, LEN);
            // What a trim before made zero is data again.
            let data = Kind::Write(*b"original");
            writer.change(Change {
                offset,
                len,
                kind: data,
            });
            race(&world, &writer, kind, step, &format!("{index}-{step:?}"));
            world.hooks.clear();
        }
    }
}

#[test]
fn a_copy_that_is_under_way_all_the_time_changes_no_byte() {
    needs!("zstd");
    at_every_step(Stage::TwoDisks, held_all_the_time);
}

#[test]
fn a_copy_that_ends_between_read_and_validation_is_noticed() {
    needs!("zstd");
    at_every_step(Stage::TwoDisks, let_go_after_a_read);
}

#[test]
fn a_switch_is_seen_before_the_origin_changes() {
    needs!("zstd");
    at_every_step(Stage::TwoDisks, begun_after_the_map);
}

#[test]
fn the_same_holds_on_two_partitions_of_a_lun() {
    needs_loop_devices!("addpart", "zstd");
    at_every_step(Stage::Partitions, let_go_after_a_read);
}

#[test]
fn the_same_holds_on_a_shared_lun() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    at_every_step(Stage::SharedLun, begun_after_the_map);
}
