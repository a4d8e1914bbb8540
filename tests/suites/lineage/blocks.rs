//! Incremental backups of changes that are smaller than a leaf: only the blocks of 4 KiB that changed are stored.

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use tests::disk::run;
use tests::program::{Host, fails, proxy_client};
use tests::site::text;
use tests::{needs, needs_loop_devices, volume};

use super::backups::{LEAF, Scene, number};
use super::{Frozen, MIB};
use crate::resume::run_up_to;

const BLOCK: u64 = 4 << 10;

fn inspected(image: &Path) -> Value {
    serde_json::from_str(&proxy_client(&["inspect", "--json", text(image)])).unwrap()
}

/// A scene whose volume was frozen and backed up as `mon`.
fn scene_of(size: u64) -> (Scene, Frozen) {
    let scene = Scene::of(size);
    let mon = scene.agent.freeze("mon");
    scene.back_up(&mon, "mon", &[]);
    scene.agent.thaw(&mon, &[]);
    (scene, mon)
}

/// What changed and lay in the image before is counted block by block, and is what a full backup would hold.
#[test]
fn scattered_changes_are_stored_block_by_block() {
    needs_loop_devices!("mkfs.xfs");
    needs!("nbdcopy");
    let size = 8 * MIB + 100;
    let (scene, _) = scene_of(size);
    let (agent, live) = (&scene.agent, scene.live());
    // A block in each of 64 leaves; two bytes in two blocks; and the short one at the end.
    for nth in 0..64 {
        let at = nth * 2 * LEAF + nth % 16 * BLOCK;
        live.write_all_at(&volume::noise(nth, 4096), at).unwrap();
    }
    live.write_all_at(&[1, 2], LEAF + 2 * BLOCK - 1).unwrap();
    live.write_all_at(&[3], size - 1).unwrap();
    let tue = agent.freeze("tue");
    let report = scene.back_up(&tue, "tue", &["--parent", text(&scene.path("mon"))]);
    let stored = 66 * BLOCK + 100;
    let told = inspected(&scene.path("tue"));
    assert_eq!(number(&told, "bytes_data"), stored, "{told}");
    assert_eq!(number(&told, "bytes_same"), size - stored, "{told}");
    assert_eq!(number(&report, "bytes_same"), size - stored, "{report}");
    assert_eq!(
        number(&report, "bytes_direct") + number(&report, "bytes_nbd"),
        stored,
        "{report}"
    );
    // Noise does not compress: with whole leaves it would be more than 64 of them.
    let length = std::fs::metadata(scene.path("tue")).unwrap().len();
    assert!(length < stored + 64 * 512, "{length}");
    scene.assert_as_good_as_full(&tue, "tue", &report);
    agent.thaw(&tue, &[]);

    // Other blocks of the same leaves, over an image that has only some of them; one comes back to what it was.
    for nth in 0..64 {
        let at = nth * 2 * LEAF + (nth + 5) % 16 * BLOCK;
        live.write_all_at(&volume::noise(100 + nth, 4096), at).unwrap();
    }
    live.write_all_at(&tue.bytes[..4096], 0).unwrap();
    let wed = agent.freeze("wed");
    let report = scene.back_up(&wed, "wed", &["--parent", text(&scene.path("tue"))]);
    let told = inspected(&scene.path("wed"));
    assert_eq!(number(&told, "bytes_data"), 65 * BLOCK, "{told}");
    scene.assert_as_good_as_full(&wed, "wed", &report);

    let against = ["--against", &agent.uri(&wed.export), "--json"];
    let told = proxy_client(&[&["verify", text(&scene.path("wed"))], &against[..]].concat());
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["against"]["bytes_compared"], size, "{told}");
    assert_eq!(told["against"]["differing"]["bytes"], 0, "{told}");

    let (socket, copy) = (scene.path("socket"), scene.path("copy"));
    let images = ["mon", "tue", "wed"].map(|name| scene.path(name));
    let named: Vec<String> = images.iter().map(|path| format!("{}", path.display())).collect();
    let host = Host::serve_images(&[&named[0], &named[1], &named[2], "--socket", text(&socket)]);
    for (name, frozen) in [("tue", &tue), ("wed", &wed)] {
        run("nbdcopy", &[host.uri(name), text(&copy)]);
        assert!(std::fs::read(&copy).unwrap() == frozen.bytes, "{name}");
    }
    assert!(host.terminate().success());
}

/// The same straight from the LUN: of what is read only what is stored is counted.
#[test]
fn scattered_changes_are_read_from_the_lun() {
    needs_loop_devices!("mkfs.xfs");
    let (scene, lun) = Scene::with_lun(8 * MIB + 100);
    let (agent, live) = (&scene.agent, scene.live());
    let direct = ["--lun", &lun, "--audit", "100", "--require-direct", "100"];
    let mon = agent.freeze("mon");
    scene.back_up(&mon, "mon", &direct);
    agent.thaw(&mon, &[]);
    for nth in 0..40 {
        let at = nth * 3 * LEAF + nth % 16 * BLOCK;
        live.write_all_at(&volume::noise(nth, 4096), at).unwrap();
    }
    let tue = agent.freeze("tue");
    let mon = scene.path("mon");
    let report = scene.back_up(&tue, "tue", &[&direct[..], &["--parent", text(&mon)]].concat());
    assert_eq!(number(&report, "bytes_direct"), 40 * BLOCK, "{report}");
    assert_eq!(number(&report, "bytes_nbd"), 0, "{report}");
    assert_eq!(
        number(&report, "bytes_audited"),
        40 * LEAF,
        "what was read: {report}"
    );
    assert_eq!(report["identity"][0]["bytes"], 40 * BLOCK, "{report}");
    let told = inspected(&scene.path("tue"));
    assert_eq!(number(&told, "bytes_direct"), 40 * BLOCK, "{told}");
    scene.assert_as_good_as_full(&tue, "tue", &report);
}

/// Zeroes, holes and another size, of parts of leaves that did not change for the rest.
#[test]
fn blocks_become_zeroes_and_holes_and_lie_behind_either_end() {
    needs_loop_devices!("mkfs.xfs");
    let (scene, _) = scene_of(2 * MIB + 5 * BLOCK + 7);
    let (agent, live) = (&scene.agent, scene.live());
    let punch = |at: u64, length: u64| {
        use nix::fcntl::FallocateFlags;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (at, length) = (at.try_into().unwrap(), length.try_into().unwrap());
        nix::fcntl::fallocate(&live, flags, at, length).unwrap();
    };
    // Some of a leaf; a whole one; and all of one but a block that is as it was.
    punch(3 * BLOCK, 2 * BLOCK);
    punch(2 * LEAF, LEAF);
    punch(4 * LEAF, 7 * BLOCK);
    punch(4 * LEAF + 8 * BLOCK, 8 * BLOCK);
    live.write_all_at(&[0; 4096], 6 * LEAF + BLOCK).unwrap();
    let tue = agent.freeze("tue");
    let report = scene.back_up(&tue, "tue", &["--parent", text(&scene.path("mon"))]);
    let told = inspected(&scene.path("tue"));
    assert_eq!(
        number(&told, "bytes_data"),
        BLOCK,
        "zeroes that were written: {told}"
    );
    scene.assert_as_good_as_full(&tue, "tue", &report);
    agent.thaw(&tue, &[]);

    // Longer by a leaf and some: what was the last leaf is stored whole.
    live.set_len(2 * MIB + LEAF + 3 * BLOCK + 1).unwrap();
    live.write_all_at(&[9; 5], LEAF).unwrap();
    let wed = agent.freeze("wed");
    let report = scene.back_up(&wed, "wed", &["--parent", text(&scene.path("tue"))]);
    scene.assert_as_good_as_full(&wed, "wed", &report);
    agent.thaw(&wed, &[]);

    // And shorter, within a block.
    live.set_len(MIB + LEAF + BLOCK + 9).unwrap();
    let thu = agent.freeze("thu");
    let report = scene.back_up(&thu, "thu", &["--parent", text(&scene.path("wed"))]);
    let told = inspected(&scene.path("thu"));
    assert_eq!(number(&told, "bytes_data"), BLOCK + 9, "{told}");
    scene.assert_as_good_as_full(&thu, "thu", &report);
}

/// No leaf is the parent's as a whole, so whatever is wrong with its bytes is in the place of blocks.
#[test]
fn a_parent_that_changed_where_blocks_are_its_is_refused() {
    needs_loop_devices!("mkfs.xfs");
    let (scene, _) = scene_of(4 * MIB);
    let live = scene.live();
    for leaf in 0..64 {
        live.write_all_at(&[7; 4096], leaf * LEAF + leaf % 16 * BLOCK)
            .unwrap();
    }
    let tue = scene.agent.freeze("tue");
    let (parent, image) = (scene.path("mon"), scene.path("tue"));
    scene.back_up(&tue, "tue", &["--parent", text(&parent)]);
    let told = inspected(&image);
    assert_eq!(number(&told, "bytes_data"), 64 * BLOCK, "{told}");

    let good = std::fs::read(&parent).unwrap();
    let restored = scene.path("restored");
    for eighth in 1..8 {
        let mut bad = good.clone();
        bad[good.len() * eighth / 8] ^= 1;
        std::fs::write(&parent, &bad).unwrap();
        fails("proxy-client", 6, &["verify", text(&image)]);
        let to = ["restore", text(&image), "--output", text(&restored)];
        fails("proxy-client", 6, &to);
        tests::image::assert_nothing_left(&restored);
    }
    std::fs::write(&parent, &good).unwrap();
    proxy_client(&["restore", text(&image), "--output", text(&restored)]);
    assert!(std::fs::read(&restored).unwrap() == tue.bytes);
}

#[test]
fn a_killed_backup_of_scattered_changes_goes_on_to_the_same_root() {
    needs_loop_devices!("mkfs.xfs");
    let (scene, mon) = scene_of(40 * MIB + 5);
    let live = scene.live();
    // Every other block of 24 MiB.
    for nth in 0..24 * MIB / BLOCK / 2 {
        let bytes = volume::noise(nth, 4096);
        live.write_all_at(&bytes, 8 * MIB + nth * 2 * BLOCK).unwrap();
    }
    let tue = scene.agent.freeze("tue");
    let (uri, parent, image) = (scene.agent.uri(&tue.export), scene.path("mon"), scene.path("tue"));
    let words = [
        "backup",
        &uri,
        "--json",
        "--host-is-this-machine",
        "--checkpoint-every",
        "1M",
    ];
    let to = ["--output", text(&image), "--parent", text(&parent)];
    let words = [&words[..], &to].concat();
    let owned: Vec<String> = words.iter().map(ToString::to_string).collect();
    run_up_to(9 << 20, &owned);
    // It has a checkpoint, for whoever does not know the parent as well.
    assert_eq!(fails("proxy-client", 1, &words)["kind"], "output-exists");
    // A parent that is no good is told of, and costs nothing of what is done.
    let (partial, good) = (scene.path("tue.partial"), std::fs::read(&parent).unwrap());
    let left = std::fs::read(&partial).unwrap();
    let resume = ["resume", text(&image), "--host-is-this-machine", "--json"];
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&parent, &bad).unwrap();
    assert_eq!(fails("proxy-client", 6, &resume)["kind"], "image-bad");
    assert!(std::fs::read(&partial).unwrap() == left, "it is as it was");
    std::fs::write(&parent, &good).unwrap();
    let report = proxy_client(&resume);
    let report: Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert_eq!(report["parent"], *mon.uuid);
    assert_eq!(number(&report, "bytes_same"), 28 * MIB + 5, "{report}");
    assert_eq!(
        number(&report, "bytes_direct") + number(&report, "bytes_nbd"),
        12 * MIB,
        "{report}"
    );
    scene.assert_as_good_as_full(&tue, "tue", &report);
}
