//! The extents of a frozen image are moved under the proxy, and their old places are overwritten.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use proxy_client::error::ErrorKind;
use proxy_client::report::BackupReport;
use tests::ambush::{Ambush, Point};
use tests::disk::{Mounted, run};
use tests::needs_loop_devices;
use tests::site::{Site, text};
use tests::volume::noise;

use super::{MIB, SIZE, deduplicate, overwrite, set_immutable, xfs_site};

const NO_LOCATION: &str = "the host gives no location for it";

/// Whether any of the places on the LUN, learnt earlier, holds other bytes than the frozen ones now.
fn overwritten(site: &Site, places: &[(u64, u64, u64)]) -> bool {
    let lun = File::open(&site.disk.disk.lun).unwrap();
    let frozen = noise(1, SIZE);
    places.iter().any(|&(offset, _, place)| {
        let mut bytes = [0; 4096];
        lun.read_exact_at(&mut bytes, place).unwrap();
        let offset = usize::try_from(offset).unwrap();
        bytes != frozen[offset..offset + bytes.len()]
    })
}

/// What went over NBD is accounted for, by the one reason.
fn assert_reason(report: &BackupReport) {
    assert_eq!(report.bytes_direct + report.bytes_nbd, SIZE as u64, "{report:?}");
    assert!(report.bytes_nbd > 0, "{report:?}");
    let [reason] = &report.transport_reasons[..] else {
        panic!("{report:?}");
    };
    assert_eq!(
        (reason.reason.as_str(), reason.bytes),
        (NO_LOCATION, report.bytes_nbd)
    );
}

#[test]
fn deduplication_through_a_read_only_descriptor_is_refused_by_the_flag() {
    needs_loop_devices!("mkfs.xfs", "xfs_io", "zstd");
    for point in Point::ALL {
        let mut site = xfs_site();
        site.serve(&[]);
        let clone = site.clone_of_volume();
        let places = site.extents(&clone);
        let (victim, twin, volume) = (clone.clone(), site.path("twin"), site.volume());
        let ambush = Ambush::new(point, 0, move || {
            deduplicate(&victim, &twin);
            // Had the clone left the blocks that it shares with the volume, this would go into them.
            overwrite(&volume);
        });
        let report = site.assert_right(site.backup(&ambush));
        assert!(ambush.has_sprung());
        assert_eq!(site.extents(&clone), places, "nothing has moved");
        assert_eq!(report.bytes_direct, SIZE as u64, "{report:?}");
    }
}

#[test]
fn without_the_flag_the_rest_goes_over_nbd() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    for point in Point::ALL {
        let mut site = xfs_site();
        site.serve(&[]);
        let clone = site.clone_of_volume();
        let ambush = Ambush::new(point, 0, move || set_immutable(&clone, false));
        let report = site.assert_right(site.backup(&ambush));
        assert!(ambush.has_sprung());
        assert_reason(&report);
        assert!(
            report.bytes_moved > 0,
            "what was read already is read again: {report:?}"
        );
    }
}

/// Moves the extents of the clone away from under the proxy, and overwrites where they were.
fn move_and_overwrite(clone: &Path, twin: &Path, volume: &Path) {
    set_immutable(clone, false);
    deduplicate(clone, twin);
    overwrite(volume);
}

/// An attack at `point`, behind `wait` reads.
fn old_places_are_not_read(point: Point, wait: usize) {
    let mut site = xfs_site();
    site.serve(&[]);
    let clone = site.clone_of_volume();
    let places = site.extents(&clone);
    let (victim, twin, volume) = (clone.clone(), site.path("twin"), site.volume());
    let ambush = Ambush::new(point, wait, move || move_and_overwrite(&victim, &twin, &volume));
    let report = site.assert_right(site.backup(&ambush));
    assert!(ambush.has_sprung());
    assert!(overwritten(&site, &places), "the attack has to bite");
    assert_ne!(site.extents(&clone), places);
    assert_reason(&report);
}

#[test]
fn extents_that_were_moved_and_overwritten_are_not_read_from_their_old_places() {
    needs_loop_devices!("mkfs.xfs", "xfs_io", "zstd");
    for point in Point::ALL {
        old_places_are_not_read(point, 0);
    }
}

#[test]
fn extents_that_were_moved_and_overwritten_late_are_not_read_from_their_old_places() {
    needs_loop_devices!("mkfs.xfs", "xfs_io", "zstd");
    // Most of the volume was read by then, and some of it confirmed.
    old_places_are_not_read(Point::BeforeRead, SIZE / MIB - 1);
}

#[test]
fn a_flag_that_was_set_again_hides_nothing() {
    needs_loop_devices!("mkfs.xfs", "xfs_io", "zstd");
    let mut site = xfs_site();
    site.serve(&[]);
    let clone = site.clone_of_volume();
    let places = site.extents(&clone);
    let (twin, volume) = (site.path("twin"), site.volume());
    let ambush = Ambush::new(Point::BeforeRead, 0, move || {
        move_and_overwrite(&clone, &twin, &volume);
        set_immutable(&clone, true);
    });
    let report = site.assert_right(site.backup(&ambush));
    assert!(ambush.has_sprung());
    assert!(overwritten(&site, &places), "the attack has to bite");
    assert_reason(&report);
}

/// A volume in pieces of 128 KiB, the odd ones before the even ones: worth defragmenting.
fn fragmented_site(disk: Mounted) -> Site {
    const PIECE: usize = 128 << 10;
    let bytes = noise(1, SIZE);
    let site = Site::new(disk, &bytes);
    let volume = File::create(site.volume()).unwrap();
    for parity in [1, 0] {
        for at in (parity * PIECE..SIZE).step_by(2 * PIECE) {
            volume.write_all_at(&bytes[at..at + PIECE], at as u64).unwrap();
        }
        volume.sync_all().unwrap();
    }
    site
}

/// A defragmenter, which may have to wait until the host lets it in; gone when dropped.
struct Defragmenter(Child);

impl Defragmenter {
    /// Starts one, and gives it time to do its work.
    fn start(program: &str, file: &Path) -> Self {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut child = Command::new(program)
            .env("PATH", path)
            .arg("-v")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..100 {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self(child)
    }
}

impl Drop for Defragmenter {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Lets a defragmenter at `file` in, and gives what became of the backup. `free`: the flag was taken away before.
fn defragment(
    site: &Site,
    point: Point,
    program: &'static str,
    file: PathBuf,
    free: bool,
) -> Result<BackupReport, proxy_client::error::Error> {
    let (running, ran) = mpsc::channel();
    let ambush = Ambush::new(point, 0, move || {
        if free {
            set_immutable(&file, false);
        }
        running.send(Defragmenter::start(program, &file)).unwrap();
    });
    let outcome = site.backup(&ambush);
    assert!(ambush.has_sprung());
    drop(ran);
    outcome
}

#[test]
fn a_defragmenter_of_xfs_moves_nothing_that_is_frozen() {
    needs_loop_devices!("mkfs.xfs", "xfs_fsr", "zstd");
    for point in Point::ALL {
        // The live file is moved, and then overwritten in its new place: the clone keeps the old one.
        let mut site = fragmented_site(Mounted::xfs(320 << 20));
        site.serve(&[]);
        let places = site.extents(&site.volume());
        let report = site.assert_right(defragment(&site, point, "xfs_fsr", site.volume(), false));
        assert_eq!(report.bytes_direct, SIZE as u64, "{report:?}");
        assert!(
            site.extents(&site.volume()).len() < places.len(),
            "it has to move something"
        );

        let clone = site.clone_of_volume();
        std::fs::remove_file(site.image()).unwrap();
        let report = site.assert_right(defragment(&site, point, "xfs_fsr", clone.clone(), false));
        assert_eq!(report.bytes_direct, SIZE as u64, "{report:?}");
        assert_eq!(
            site.extents(&clone),
            places,
            "the flag keeps the clone in its place"
        );
    }
}

#[test]
fn a_defragmenter_of_a_clone_without_its_flag_is_noticed() {
    needs_loop_devices!("mkfs.xfs", "xfs_fsr", "zstd");
    for point in Point::ALL {
        let mut site = fragmented_site(Mounted::xfs(320 << 20));
        site.serve(&[]);
        let clone = site.clone_of_volume();
        match defragment(&site, point, "xfs_fsr", clone, true) {
            Ok(report) => assert_reason(&site.assert_right(Ok(report))),
            // It may have to open the clone for writing, which breaks the lease.
            failed => drop(site.assert_failed(failed, ErrorKind::FrozenImageGone)),
        }
    }
}

#[test]
fn a_defragmenter_of_ext4_moves_nothing_that_is_quiesced() {
    needs_loop_devices!("mkfs.ext4", "e4defrag", "zstd");
    let mut site = fragmented_site(Mounted::ext4(96 << 20));
    site.serve(&["--freeze", "quiesce"]);
    let places = site.extents(&site.volume());
    let report = site.assert_right(defragment(
        &site,
        Point::AfterRead,
        "e4defrag",
        site.volume(),
        false,
    ));
    assert_eq!(report.bytes_direct, SIZE as u64, "{report:?}");
    assert_eq!(site.extents(&site.volume()), places);

    // Without the flag it opens the file for writing, and that ends the frozen image.
    std::fs::remove_file(site.image()).unwrap();
    let outcome = defragment(&site, Point::BeforeRead, "e4defrag", site.volume(), true);
    site.assert_failed(outcome, ErrorKind::FrozenImageGone);
    run("sync", &["-f", text(&site.volume())]);
}
