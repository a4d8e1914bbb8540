//! Frozen images that end while somebody reads them: loudly for the proxy, unnoticed by the writers.

use std::sync::Arc;

use proxy_client::error::ErrorKind;
use tests::ambush::{Ambush, Point};
use tests::cow::client::Client;
use tests::cow::log::Kind;
use tests::cow::volume::assert_same;
use tests::cow::world::{Frozen, Given, Stage, VOLUME, World};
use tests::needs;

use super::{ALL_UNITS, SIZE, strike};

/// Units that a strike does not fit in.
const FEW_UNITS: u64 = 9;

/// A backup that has to say that its frozen image is gone, and leave nothing.
fn assert_gone(world: &World, frozen: &Frozen, ambush: &Ambush) {
    let error = world.backup(&frozen.export, Given::All, ambush).unwrap_err();
    assert!(ambush.has_sprung());
    assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
    assert_eq!(error.kind().exit_code(), 5);
    world.assert_no_image(&frozen.export);
}

/// A backup without trouble.
fn assert_backs_up(world: &World, frozen: &Frozen) {
    let ambush = Ambush::never();
    let (_, image) = world.backup(&frozen.export, Given::All, &ambush).unwrap();
    world.assert_restores(&image, frozen);
}

/// Reads and status alike, on a connection from before: gone, and gone for good.
fn assert_says_gone(reader: &Client) {
    for _ in 0..2 {
        assert!(reader.read(0, 512).unwrap_err().is_gone());
        assert!(reader.read(SIZE / 2, 512).unwrap_err().is_gone(), "zeroes too");
        assert!(reader.status().unwrap_err().is_gone());
    }
}

#[test]
fn a_full_copy_area_costs_the_frozen_image_and_never_the_writer() {
    needs!("zstd");
    let world = World::open(Stage::TwoDisks, SIZE, FEW_UNITS);
    let writer = Arc::new(world.writer());
    for (round, point) in Point::ALL.into_iter().enumerate() {
        let frozen = world.freeze(&format!("full-{round}"));
        let reader = world.reader(&frozen.export, &["base:allocation"]).unwrap();
        let attacker = Arc::clone(&writer);
        let kind = Kind::Write([u8::try_from(round).unwrap() + 1; 8]);
        let ambush = Ambush::new(point, 0, move || strike(&attacker, kind));
        assert_gone(&world, &frozen, &ambush);
        assert_says_gone(&reader);
        // A new image has the whole copy area, thawed or not.
        if round % 2 == 0 {
            world.thaw(&frozen);
        }
        let next = world.freeze(&format!("next-{round}"));
        assert_says_gone(&reader);
        assert_backs_up(&world, &next);
        world.thaw(&next);
        let live = world.reader(VOLUME, &[]).unwrap().read_all().unwrap();
        assert_same(&live, &world.oracle.content(), "the live volume");
    }
}

#[test]
fn a_thaw_in_the_middle_ends_the_backup() {
    needs!("zstd");
    let world = World::open(Stage::TwoDisks, SIZE, ALL_UNITS);
    for (round, point) in Point::ALL.into_iter().enumerate() {
        let frozen = world.freeze(&format!("thawed-{round}"));
        let reader = world.reader(&frozen.export, &["base:allocation"]).unwrap();
        let (host, export) = (Arc::clone(&world.host), frozen.export.clone());
        let ambush = Ambush::new(point, 0, move || host.thaw(&export).unwrap());
        assert_gone(&world, &frozen, &ambush);
        assert_says_gone(&reader);
        assert!(
            world.reader(&frozen.export, &[]).is_err(),
            "the export is no more"
        );
    }
}

/// Thaw, and freeze under the same name: the bytes differ, and nobody takes one image for the other.
#[test]
fn another_frozen_image_under_the_same_name_ends_the_backup() {
    needs!("zstd");
    let world = World::open(Stage::TwoDisks, SIZE, ALL_UNITS);
    let writer = Arc::new(world.writer());
    let frozen = world.freeze("same");
    let (host, export, attacker) = (Arc::clone(&world.host), frozen.export.clone(), writer);
    let ambush = Ambush::new(Point::BeforeRead, 0, move || {
        host.thaw(&export).unwrap();
        strike(&attacker, Kind::Write(*b"another "));
        host.freeze(VOLUME, Some("same")).unwrap();
    });
    assert_gone(&world, &frozen, &ambush);
    let content = world.oracle.content();
    assert!(content != frozen.content);
    assert_backs_up(&world, &Frozen { content, ..frozen });
}
