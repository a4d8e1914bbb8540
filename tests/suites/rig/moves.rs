//! Extents that are moved below a frozen image, by `pvmove` and by hand, while the proxy reads them, and others' data where they
//! were: every byte is right, and what was moved is read directly from where it lies by then, on a disk that it did not lie on at the
//! freeze.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proxy_client::report::BackupReport;
use tests::ambush::{Ambush, Point};
use tests::guest::{Guest, Process, Rig};
use tests::needs_guests;

use super::around::Around;
use super::{MIB, assert_image, backup, sha256_in, sha256_of_device, sole};

/// Several batches of the proxy, so that one is read while another is confirmed.
const SIZE: u64 = 32 * MIB;

/// A guest with two disks.
struct Site {
    guest: Arc<Guest>,
    image: PathBuf,
    luns: [(&'static str, PathBuf); 2],
}

impl Site {
    fn boot(rig: &Rig, prepare: &str) -> Self {
        let disks = [rig.disk("lun0", 448 * MIB), rig.disk("lun1", 448 * MIB)];
        let guest = rig.boot("host", &[&disks[0], &disks[1]]);
        guest.run(prepare);
        let [first, second] = disks;
        Self {
            guest: Arc::new(guest),
            image: rig.path("image"),
            luns: [("lun0", first), ("lun1", second)],
        }
    }

    fn serve(&self, volume: &str, more: &str) -> (Process, String) {
        let (process, uris) = self.guest.serve(&format!(
            "vol={volume} {more} --identity /dev/ubda=lun0 --identity /dev/ubdb=lun1 --listen {}:10809 --insecure-plaintext",
            self.guest.address
        ));
        (process, sole(&uris).to_owned())
    }

    /// Backs a read-only device up, in whose place on the first disk the ambush writes something else. The image is right.
    fn assert_right_under(&self, device: &str, ambush: &Ambush, told: &str) {
        let place = place_of(&self.guest, device);
        let (host, uri) = self.serve(device, "--freeze static");
        let frozen = sha256_of_device(&self.guest, device);
        let before = bytes_at(&self.luns[0].1, place);
        let report = backup(&uri, &self.image, &self.luns, ambush).unwrap();
        let told = format!("{told}: {report:?}");
        assert!(ambush.has_sprung(), "{told}");
        assert!(
            bytes_at(&self.luns[0].1, place) != before,
            "the attack has to bite: {told}"
        );
        assert_image(&self.image, &frozen, &report);
        assert_remapped(&report, &told);
        eprintln!("right: {told}");
        self.end(host);
    }

    fn end(&self, host: Process) {
        self.guest.run(&format!("kill {}", host.pid));
        assert_eq!(host.wait().status, 0);
    }
}

/// What was thrown away was read again from its new place, and nothing by the host.
fn assert_remapped(report: &BackupReport, told: &str) {
    assert!(report.bytes_moved > 0, "{told}");
    assert_eq!(report.bytes_remapped_direct, report.bytes_moved, "{told}");
    assert_eq!(
        (report.bytes_direct, report.bytes_nbd),
        (SIZE, 0),
        "{told}: {report:?}"
    );
}

/// Where a device of one linear segment lies on its disk, in bytes.
fn place_of(guest: &Guest, device: &str) -> u64 {
    let table = guest.run(&format!("dmsetup table {device}"));
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!((words.len(), words[2]), (5, "linear"), "{table}");
    words[4].parse::<u64>().unwrap() * 512
}

/// What a LUN holds from a place on, for the length of the volume.
fn bytes_at(lun: &Path, place: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    File::open(lun).unwrap().read_exact_at(&mut bytes, place).unwrap();
    bytes
}

/// `vg/lv` of noise on the first disk, read-only, and `vg/files` there with XFS on it. 48 MiB at the end of the disks are nobody's.
const VOLUMES: &str = "
    pvcreate -qq -y --setphysicalvolumesize 400m /dev/ubda /dev/ubdb
    vgcreate -qq -s 1M vg /dev/ubda /dev/ubdb
    lvcreate -qq -y -Wn -l 32 -n lv vg /dev/ubda:4-35
    dd if=/dev/urandom of=/dev/vg/lv bs=1M count=32 oflag=direct status=none
    lvchange -qq -pr vg/lv
    lvcreate -qq -y -Wn -l 304 -n files vg /dev/ubda:40-343
    mkfs.xfs -q /dev/vg/files
    mkdir /xfs
    mount /dev/vg/files /xfs
    dd if=/dev/urandom of=/xfs/vm.img bs=1M count=32 status=none
    sync";

const LV: &str = "/dev/mapper/vg-lv";

/// Moves `vg/lv` to the second disk, and gives its old place to another volume, which is written.
const AWAY: &str = "
    pvmove -qq -i 1 -n lv /dev/ubda /dev/ubdb
    lvcreate -qq -y -Wn -l 32 -n thief vg /dev/ubda:4-35
    dd if=/dev/urandom of=/dev/vg/thief bs=1M count=32 oflag=direct status=none";

/// The way back.
const BACK: &str = "
    lvremove -qq -y vg/thief
    pvmove -qq -i 1 -n lv /dev/ubdb /dev/ubda:4-35";

/// Runs a script in the guest when it is let in.
fn letting_in(site: &Site, point: Point, wait: usize, script: &'static str) -> Ambush {
    let guest = Arc::clone(&site.guest);
    Ambush::new(point, wait, move || drop(guest.run(script)))
}

#[test]
fn what_moves_below_a_frozen_image_is_read_from_its_new_place_and_never_from_its_old() {
    needs_guests!("lvm", "mkfs.xfs", "zstd");
    let rig = Rig::new();
    let site = Site::boot(&rig, VOLUMES);
    for point in Point::ALL {
        let ambush = letting_in(&site, point, 0, AWAY);
        site.assert_right_under(LV, &ambush, &format!("pvmove, {point:?}"));
        site.guest.run(BACK);
    }
    // Nearly all of the volume was read by then.
    let ambush = letting_in(&site, Point::BeforeRead, 31, AWAY);
    site.assert_right_under(LV, &ambush, "pvmove, late");
    site.guest.run(BACK);

    moved_there_and_back(&site);
    table_by_hand(&site);
    moved_under_writers(&site);
}

/// The table that is confirmed is the one that was read by, in every word; in between it was another.
fn moved_there_and_back(site: &Site) {
    let table = || site.guest.run("dmsetup table vg-lv");
    let first = table();
    let (host, uri) = site.serve(LV, "--freeze static");
    let frozen = sha256_of_device(&site.guest, LV);
    let (away, back) = (Arc::clone(&site.guest), Arc::clone(&site.guest));
    let around = Around::new(move || drop(away.run(AWAY)), move || drop(back.run(BACK)));
    let report = backup(&uri, &site.image, &site.luns, &around).unwrap();
    assert_eq!(table(), first);
    let (place, foreign) = around.read_between();
    let mut ours = vec![0; foreign.len()];
    let lun = File::open(&site.luns[0].1).unwrap();
    lun.read_exact_at(&mut ours, place).unwrap();
    assert!(foreign != ours, "the attack has to bite");
    assert_image(&site.image, &frozen, &report);
    assert_remapped(&report, "there and back");
    eprintln!("right: there and back: {report:?}");
    site.end(host);
}

/// A device that no LVM knows of gets another table while it is held.
fn table_by_hand(site: &Site) {
    const PREPARE: &str = "
        dd if=/dev/urandom of=/dev/ubda bs=1M seek=410 count=32 oflag=direct status=none
        dmsetup create plain --readonly --table '0 65536 linear /dev/ubda 839680'";
    const RELOAD: &str = "
        dd if=/dev/mapper/plain of=/dev/ubdb bs=1M seek=410 count=32 oflag=direct status=none
        dmsetup load plain --readonly --table '0 65536 linear /dev/ubdb 839680'
        dmsetup suspend plain
        dmsetup resume plain
        dd if=/dev/urandom of=/dev/ubda bs=1M seek=410 count=32 oflag=direct status=none";
    for point in Point::ALL {
        site.guest.run(PREPARE);
        let ambush = letting_in(site, point, 0, RELOAD);
        site.assert_right_under("/dev/mapper/plain", &ambush, &format!("reload, {point:?}"));
        site.guest.run("dmsetup remove plain");
    }
}

/// A clone on XFS on the volume that is moved, while its live file is written to.
fn moved_under_writers(site: &Site) {
    const AWAY: &str = "
        pvmove -qq -i 1 -n files /dev/ubda /dev/ubdb
        lvcreate -qq -y -Wn -l 304 -n thief vg /dev/ubda:40-343
        dd if=/dev/urandom of=/dev/vg/thief bs=1M count=304 oflag=direct status=none";
    let guest = &site.guest;
    let writer = guest.start(
        "while :; do
             dd if=/dev/urandom of=/xfs/vm.img bs=64k seek=$((RANDOM % 512)) count=1 conv=notrunc oflag=direct status=none
         done",
    );
    let (host, uri) = site.serve("/xfs/vm.img", "--freeze reflink");
    let ambush = letting_in(site, Point::AfterRead, 1, AWAY);
    let report = backup(&uri, &site.image, &site.luns, &ambush).unwrap();
    assert!(ambush.has_sprung());
    let frozen = sha256_in(guest, "cat /xfs/.vm.img.*.frozen");
    assert_image(&site.image, &frozen, &report);
    assert_remapped(&report, "under writers");
    eprintln!("right: under writers: {report:?}");
    guest.run(&format!("kill {}", writer.pid));
    site.end(host);
}
