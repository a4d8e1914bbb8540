//! A writer is let in around the proxy's reads: after the map, during a read, and between a read and its validation.

use std::sync::Arc;

use tests::ambush::{Ambush, Point};
use tests::cow::world::{Given, Stage, World};
use tests::needs_loop_devices;

use super::{ALL_UNITS, KINDS, SIZE, strike};

/// Every kind of request at every moment, with a backup each.
fn let_writers_in(stage: Stage, given: Given) {
    let world = World::open(stage, SIZE, ALL_UNITS);
    let writer = Arc::new(world.writer());
    for (round, kind) in KINDS.into_iter().enumerate() {
        for point in Point::ALL {
            // The strike before has left zeroes, perhaps: data again, that no strike writes.
            strike(&writer, tests::cow::log::Kind::Write(*b"original"));
            let frozen = world.freeze(&format!("{round}-{point:?}"));
            let attacker = Arc::clone(&writer);
            let ambush = Ambush::new(point, 0, move || strike(&attacker, kind));
            let (report, image) = world.backup(&frozen.export, given, &ambush).unwrap();

            let told = format!("{kind:?} {point:?}: {report:?}");
            assert!(ambush.has_sprung(), "{told}");
            assert!(world.oracle.content() != frozen.content, "{told}");
            world.assert_restores(&image, &frozen);
            assert!(report.bytes_direct > 0 && report.validations > 0, "{told}");
            assert!(report.bytes_zero > 0, "{told}");
            assert!(report.bytes_moved > 0, "{told}");
            match given {
                // A unit moves once, so that the second read is the last.
                Given::All => {
                    assert_eq!(report.bytes_remapped_direct, report.bytes_moved, "{told}");
                    assert_eq!(report.bytes_nbd, 0, "{told}");
                }
                Given::OriginOnly => {
                    assert_eq!(report.bytes_remapped_direct, 0, "{told}");
                    assert!(report.bytes_nbd >= report.bytes_moved, "{told}");
                    let reasons: Vec<_> = report.transport_reasons.iter().map(|r| &*r.reason).collect();
                    assert_eq!(reasons, ["it lies on a disk that no --lun names"], "{told}");
                    assert_eq!(report.transport_reasons[0].bytes, report.bytes_nbd, "{told}");
                }
            }
            world.thaw(&frozen);
        }
    }
}

#[test]
fn what_moves_is_read_again_from_the_copy_area_on_the_same_lun() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let_writers_in(Stage::SharedLun, Given::All);
}

#[test]
fn what_moves_is_read_again_from_the_copy_area_on_another_lun() {
    tests::needs!("zstd");
    let_writers_in(Stage::TwoDisks, Given::All);
}

#[test]
fn what_moves_to_a_disk_that_the_proxy_has_not_is_read_over_nbd() {
    tests::needs!("zstd");
    let_writers_in(Stage::TwoDisks, Given::OriginOnly);
}
