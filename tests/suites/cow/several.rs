//! Several frozen images of one origin, each with a proxy and NBD readers of its own.

use std::collections::VecDeque;

use nbd_export::error::ErrorKind as HostErrorKind;
use tests::ambush::{Ambush, Point};
use tests::cow::log::Kind;
use tests::cow::served::Served;
use tests::cow::volume::assert_same;
use tests::cow::world::{Frozen, Given, Stage, VOLUME, World};
use tests::cow::writers::Writers;
use tests::program::fails;
use tests::{needs, needs_loop_devices};
use volmap::limits::FROZEN_IMAGES_MAX;

use super::{ALL_UNITS, SIZE, strike};

/// Each backup is overtaken by a strike at a point of its own, and every image that lives is right after it.
fn back_up_side_by_side(stage: Stage, copies: u64) {
    let world = World::open(stage, SIZE, copies);
    let writer = std::sync::Arc::new(world.writer());
    let mut living: VecDeque<Frozen> = VecDeque::new();
    for round in 0..6_u8 {
        living.push_back(world.freeze(&round.to_string()));
        for (nth, frozen) in (0..).zip(&living) {
            let point = Point::ALL[usize::from(round + nth) % Point::ALL.len()];
            let (attacker, kind) = (
                std::sync::Arc::clone(&writer),
                Kind::Write([round * 8 + nth + 1; 8]),
            );
            let ambush = Ambush::new(point, 0, move || strike(&attacker, kind));
            let (report, image) = world.backup(&frozen.export, Given::All, &ambush).unwrap();
            assert!(ambush.has_sprung());
            assert_eq!(report.bytes_nbd, 0, "{report:?}");
            world.assert_restores(&image, frozen);
        }
        for frozen in &living {
            let read = world.reader(&frozen.export, &[]).unwrap().read_all().unwrap();
            assert_same(&read, &frozen.content, &frozen.export);
        }
        // Three at a time; which one goes, changes.
        if living.len() == 3 {
            let gone = living.remove(usize::from(round) % 3).unwrap();
            world.thaw(&gone);
        }
    }
    for frozen in living {
        world.thaw(&frozen);
    }
    let fill = world.host.list().volumes[0].copy_area.unwrap();
    assert_eq!(fill.used, 0);
}

#[test]
fn frozen_images_side_by_side_are_each_their_own_instant() {
    needs!("zstd");
    back_up_side_by_side(Stage::TwoDisks, 4 * ALL_UNITS);
}

#[test]
fn frozen_images_side_by_side_on_partitions_of_a_lun() {
    needs_loop_devices!("addpart", "zstd");
    back_up_side_by_side(Stage::Partitions, ALL_UNITS);
}

#[test]
fn an_origin_has_so_many_frozen_images_and_no_more() {
    let world = World::open(Stage::TwoDisks, SIZE, ALL_UNITS);
    let all: Vec<_> = (0..FROZEN_IMAGES_MAX)
        .map(|id| world.freeze(&id.to_string()))
        .collect();
    let error = world.host.freeze(VOLUME, Some("more")).unwrap_err();
    assert_eq!(error.kind(), HostErrorKind::Busy, "{error}");
    let error = world.host.freeze(VOLUME, Some("0")).unwrap_err();
    assert_eq!(error.kind(), HostErrorKind::NameTaken, "{error}");
    assert!(world.reader(&format!("{VOLUME}@more"), &[]).is_err());
    world.thaw(&all[0]);
    world.thaw(&world.freeze("more"));
}

/// The programs: two images overlap all the time under writers that never pause but for the freeze.
#[test]
fn overlapping_frozen_images_under_writers_are_all_right() {
    needs!("zstd");
    let mut served = Served::with_room(SIZE / 2, SIZE);
    let writers: Writers = served.writers(2, 23, false);
    let mut living: VecDeque<(String, Vec<u8>)> = VecDeque::new();
    for round in 0..6 {
        writers.await_requests(20);
        let paused = writers.pause();
        let content = served.oracle.content();
        let uri = served.ask(&["freeze", "vol", "--as", &round.to_string()]);
        drop(paused);
        living.push_back((uri.trim().to_owned(), content));
        for (uri, content) in &living {
            served.assert_backs_up(uri, content);
        }
        let listed = served.list();
        assert_eq!(
            listed["volumes"][0]["frozen"].as_array().unwrap().len(),
            living.len()
        );
        assert_eq!(listed["volumes"][0]["copy_area"]["on_full"], "break");
        if living.len() == 2 {
            let (uri, _) = living.pop_front().unwrap();
            served.ask(&["thaw", &format!("vol@{}", round - 1)]);
            let error = fails(
                "proxy-client",
                1,
                &["backup", &uri, "--output", &served.path("late")],
            );
            assert_eq!(error["kind"], "host-refused");
        }
    }
    writers.stop();
    served.terminate();
}
