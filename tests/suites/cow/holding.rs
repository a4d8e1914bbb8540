//! Writers that are held when the copy area is full: the control socket answers, a thaw lets them go on, and nobody waits for ever.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nbd_export::host::{FillState, OnFullReport};
use proxy_client::error::ErrorKind;
use tests::ambush::Ambush;
use tests::cow::client::Client;
use tests::cow::log::{Change, Kind};
use tests::cow::world::{Given, Stage, World};
use tests::needs;
use volmap::cow::OnFull;
use volmap::limits::COPY_UNIT;

use super::{SIZE, strike};

/// Units of the copy area: fewer than a strike needs.
const FEW_UNITS: u64 = 9;

const LONG: Duration = Duration::from_secs(100);

fn begin_strike(writer: &Arc<Client>, kind: Kind) -> thread::JoinHandle<()> {
    let writer = Arc::clone(writer);
    thread::spawn(move || strike(&writer, kind))
}

fn await_held(world: &World) {
    let begun = Instant::now();
    loop {
        let fill = world.host.list().volumes[0].copy_area.unwrap();
        if fill.held_writers > 0 {
            assert_eq!((fill.used, fill.state), (fill.size, FillState::Full));
            return;
        }
        assert!(begun.elapsed() < LONG, "nobody is held: {fill:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_held_writer_goes_on_after_a_thaw_and_the_backup_before_it_is_whole() {
    needs!("zstd");
    let world = World::open_with(Stage::TwoDisks, SIZE, FEW_UNITS, OnFull::Hold(LONG));
    let writer = Arc::new(world.writer());
    let frozen = world.freeze("one");
    let held = begin_strike(&writer, Kind::Write(*b"another "));
    await_held(&world);
    let fill = world.host.list().volumes[0].copy_area.unwrap();
    assert_eq!((fill.on_full, fill.hold_seconds), (OnFullReport::Hold, Some(100)));
    // Told to the proxy too, whenever it asks.
    let reader = world.reader(&frozen.export, &[]).unwrap();
    let told = reader.description();
    assert!(
        told.contains(&format!(
            " copy-area={0}/{0} copy-area-growth=",
            FEW_UNITS * COPY_UNIT
        )),
        "{told}"
    );

    let ambush = Ambush::never();
    let (report, image) = world.backup(&frozen.export, Given::All, &ambush).unwrap();
    assert_eq!(report.bytes_nbd, 0, "{report:?}");
    world.assert_restores(&image, &frozen);
    assert!(!held.is_finished());
    world.thaw(&frozen);
    held.join().unwrap();
    let live = world.reader("vol", &[]).unwrap().read_all().unwrap();
    assert!(live == world.oracle.content());
}

#[test]
fn a_writer_is_not_held_for_ever_and_then_the_frozen_image_is_gone() {
    let world = World::open_with(
        Stage::TwoDisks,
        SIZE,
        FEW_UNITS,
        OnFull::Hold(Duration::from_secs(1)),
    );
    let writer = world.writer();
    let frozen = world.freeze("one");
    let begun = Instant::now();
    strike(&writer, Kind::Trim);
    assert!((Duration::from_secs(1)..LONG).contains(&begun.elapsed()));
    let ambush = Ambush::never();
    let error = world.backup(&frozen.export, Given::All, &ambush).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
    let live = world.reader("vol", &[]).unwrap().read_all().unwrap();
    assert!(live == world.oracle.content());
}

/// A shutdown thaws: whoever is held is not what it waits for.
#[test]
fn the_end_of_the_agent_lets_held_writers_go() {
    let world = World::open_with(Stage::TwoDisks, SIZE, FEW_UNITS, OnFull::Hold(LONG));
    let writer = Arc::new(world.writer());
    let _frozen = world.freeze("one");
    let held = thread::spawn(move || {
        for offset in (0..SIZE).step_by(usize::try_from(COPY_UNIT).unwrap()) {
            let kind = Kind::WriteZeroes { no_hole: true };
            // The connection may be cut before the reply.
            if writer
                .try_change(Change {
                    offset,
                    len: 512,
                    kind,
                })
                .is_err()
            {
                return;
            }
        }
    });
    await_held(&world);
    let begun = Instant::now();
    drop(world);
    held.join().unwrap();
    assert!(begun.elapsed() < LONG / 2);
}
