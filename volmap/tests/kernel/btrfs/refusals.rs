//! What is not followed on btrfs.

use std::fs;
use std::path::PathBuf;

use volmap::freeze::{FreezeError, FreezeOptions, Method, leftover_clones};
use volmap::frozen::Stability;
use volmap::store::Below;

use super::pool::Pool;
use crate::rig::{pattern, read_all};

#[test]
fn parity_is_opaque_and_says_so() {
    for (profile, devices) in [("raid5", 3), ("raid6", 4)] {
        let Some(pool) = Pool::new("btrfs::parity_is_opaque_and_says_so", profile, devices, 0) else {
            return;
        };
        let (volume, bytes) = pool.volume(pool.root(), 8);
        let image = pool.freeze(&volume, Method::Auto);
        assert_eq!(image.description().stability, Stability::Opaque);
        let graph = image.graph();
        let Below::Opaque(reason) = &graph.stores().last().unwrap().below else {
            panic!("{graph:?}");
        };
        assert!(reason.contains("raid5"), "{reason}");
        assert!(read_all(&*image) == bytes);
    }
}

#[test]
fn an_origin_is_never_direct_since_what_is_overwritten_moves() {
    let Some(pool) = Pool::new(
        "btrfs::an_origin_is_never_direct_since_what_is_overwritten_moves",
        "single",
        1,
        0,
    ) else {
        return;
    };
    let origin = pool.root().join("origin");
    fs::write(&origin, pattern(1 << 20, 1)).unwrap();
    let live = pool
        .rig()
        .origin_with(&origin, &pool.root().join("copy"), pool.layers());
    let image = live.freeze().unwrap();
    assert!(!image.graph().reaches_disk());
    live.write_at(0, &pattern(1 << 20, 2), true).unwrap();
    assert!(read_all(&*image) == pattern(1 << 20, 1));
    assert_eq!(pool.read_as_proxy(&*image), (pattern(1 << 20, 1), 0));
}

#[test]
fn an_origin_on_a_subvolume_is_left_alone_and_a_clone_is_not_left_over() {
    let Some(pool) = Pool::new(
        "btrfs::an_origin_on_a_subvolume_is_left_alone_and_a_clone_is_not_left_over",
        "single",
        1,
        0,
    ) else {
        return;
    };
    let origin = pool.root().join("origin");
    fs::write(&origin, pattern(1 << 20, 1)).unwrap();
    let live = pool
        .rig()
        .origin_with(&origin, &pool.root().join("copy"), pool.layers());
    let options = FreezeOptions::default();
    let refused = pool.rig().freeze_with(&origin, &options, pool.layers()).map(drop);
    assert!(
        matches!(refused, Err(FreezeError::HeldForWriting { .. })),
        "{refused:?}"
    );
    drop(live);
    let image = pool.freeze(&origin, Method::Reflink);
    assert_eq!(leftover_clones(pool.root()).unwrap(), Vec::<PathBuf>::new());
    drop(image);
}
