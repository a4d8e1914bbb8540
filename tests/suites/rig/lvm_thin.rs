//! Thin volumes, frozen by `lvm-thin` while somebody writes to them: every byte is right, what is not mapped is not read, and nothing
//! is left behind, neither a snapshot nor the pool's metadata snapshot.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proxy_client::error::ErrorKind;
use serde_json::Value;
use tests::ambush::{Ambush, Point};
use tests::guest::{Guest, Process, Rig, Setup};
use tests::needs_guests;

use super::{MIB, assert_image, backup, sha256_of_device, sole};

/// The thin volume. Every second MiB of it is mapped. Larger than a batch of the proxy.
const SIZE: u64 = 64 * MIB;
const MAPPED: u64 = 32 * MIB;

const VOLUMES: &str = "
    pvcreate -qq -y FIRST /dev/ubdb
    vgcreate -qq -s 1M vg FIRST /dev/ubdb
    lvcreate -qq -y -Wn --thinpool pool -L 200M -c 64k --poolmetadatasize 8M vg FIRST
    lvcreate -qq -y -V 64M --thinpool pool -n tv vg
    for i in $(seq 0 31); do
        dd if=/dev/urandom of=/dev/vg/tv bs=1M count=1 seek=$((i * 2)) oflag=direct conv=notrunc status=none
    done";

/// A device on the first disk that can be made slow later.
pub(super) const LAYERED: &str = "dmsetup create pv --table '0 520192 linear /dev/ubda 2048'";

/// Of the device below only the part where the metadata lies, and reads only: LVM renews the tables of its own.
pub(super) const SLOW: &str = "
    set -- $(dmsetup table vg-pool_tmeta)
    end=$(($5 + $2))
    dmsetup load pv <<TABLE
0 $5 linear /dev/ubda 2048
$5 $2 delay /dev/ubda $((2048 + $5)) 1000 /dev/ubda $((2048 + $5)) 0
$end $((520192 - end)) linear /dev/ubda $((2048 + end))
TABLE
    dmsetup suspend pv; dmsetup resume pv";
pub(super) const FAST: &str = "
    dmsetup load pv --table '0 520192 linear /dev/ubda 2048'
    dmsetup suspend pv; dmsetup resume pv";

/// Writes all over the origin, and gives parts of it back.
const WRITER: &str = "
    while :; do
        dd if=/dev/urandom of=/dev/vg/tv bs=64k seek=$((RANDOM % 1024)) count=1 conv=notrunc oflag=direct status=none
        blkdiscard -o $((RANDOM % 64))M -l 256k /dev/vg/tv
    done";

/// A guest with a thin volume.
pub(super) struct Site {
    pub(super) guest: Arc<Guest>,
    image: PathBuf,
    luns: [(&'static str, PathBuf); 2],
}

impl Site {
    /// With a volume group on `first`, which lies on the first disk, and on the second disk.
    pub(super) fn boot(rig: &Rig, prepare: &str, first: &str) -> Self {
        let disks = [rig.disk("lun0", 256 * MIB), rig.disk("lun1", 256 * MIB)];
        let setup = Setup {
            disks: &[&disks[0], &disks[1]],
            deadline: Duration::from_secs(480),
            ..Setup::default()
        };
        let guest = rig.boot_with("host", &setup);
        guest.run(prepare);
        guest.run(&VOLUMES.replace("FIRST", first));
        let [first, second] = disks;
        Self {
            guest: Arc::new(guest),
            image: rig.path("image"),
            luns: [("lun0", first), ("lun1", second)],
        }
    }

    pub(super) fn arguments(&self) -> String {
        format!(
            "vol=/dev/vg/tv --freeze lvm-thin --identity /dev/ubda=lun0 --identity /dev/ubdb=lun1 --listen {}:10809 \
             --insecure-plaintext",
            self.guest.address
        )
    }

    pub(super) fn serve(&self) -> (Process, String) {
        let (process, uris) = self.guest.serve(&self.arguments());
        (process, sole(&uris).to_owned())
    }

    /// The frozen snapshot, of which there is one.
    fn frozen_device(&self) -> String {
        let names = self.guest.run("lvs --noheadings -o lv_name @volmap");
        let names: Vec<&str> = names.split_whitespace().collect();
        let [name] = names[..] else { panic!("{names:?}") };
        format!("/dev/vg/{name}")
    }

    /// The block of the pool's metadata snapshot, `-` where there is none. Looking has the pool commit nothing.
    pub(super) fn metadata_snapshot(&self) -> String {
        let status = self.guest.run("dmsetup status --noflush vg-pool-tpool");
        status.split_whitespace().nth(6).unwrap().to_owned()
    }

    /// An agent that holds the metadata snapshot of the pool, which is made slow for that.
    pub(super) fn until_it_holds_the_metadata(&self) -> Process {
        let agent = self
            .guest
            .start(&format!("exec nbd-export serve {}", self.arguments()));
        let until = Instant::now() + Duration::from_secs(60);
        // And has written down its block: what is not is not certainly of an agent.
        let is_written = "grep -q '^root' /var/lib/volmap/thin-pool.*";
        while self.metadata_snapshot() == "-" || self.guest.try_run(is_written).status != 0 {
            assert!(Instant::now() < until, "no metadata snapshot was taken");
        }
        agent
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.guest.run("lvs --noheadings -o lv_name @volmap").trim(), "");
        assert_eq!(self.metadata_snapshot(), "-");
    }

    pub(super) fn end(&self, host: Process) {
        self.guest.run(&format!("kill {}", host.pid));
        assert_eq!(host.wait().status, 0);
        self.assert_nothing_left();
    }

    fn ambush(&self, point: Point, wait: usize, script: &str) -> Ambush {
        let (guest, script) = (Arc::clone(&self.guest), script.to_owned());
        Ambush::new(point, wait, move || drop(guest.run(&script)))
    }
}

#[test]
fn thin_volumes_are_read_from_the_lun_while_they_are_written_to() {
    needs_guests!("lvm", "zstd");
    let rig = Rig::new();
    let site = Site::boot(&rig, "", "/dev/ubda");
    under_writers(&site);
    under_other_changes(&site);
    pool_full(&site);
    pool_moved(&site);
}

#[test]
fn a_thin_snapshot_that_is_taken_away_is_gone_and_nothing_is_left_behind() {
    needs_guests!("lvm", "zstd");
    let rig = Rig::new();
    let site = Site::boot(&rig, LAYERED, "/dev/mapper/pv");
    snapshot_made_writable(&site);
    snapshot_taken_away(&site);
    metadata_snapshot_of_somebody_else(&site);
    killed_between_reserve_and_release(&site);
}

/// All that is mapped comes from the LUN, and nothing else comes at all.
fn under_writers(site: &Site) {
    let (host, uri) = site.serve();
    assert_eq!(site.metadata_snapshot(), "-", "it is not kept");
    let frozen = sha256_of_device(&site.guest, &site.frozen_device());
    let writer = site.guest.start(WRITER);
    for round in 0..2 {
        let report = backup(&uri, &site.image, &site.luns, &Ambush::never()).unwrap();
        assert_image(&site.image, &frozen, &report);
        assert_eq!((report.bytes_direct, report.bytes_nbd), (MAPPED, 0), "{report:?}");
        assert_eq!(report.bytes_zero, SIZE - MAPPED, "{report:?}");
        eprintln!("right: under writers, round {round}: {report:?}");
    }
    site.guest.run(&format!("kill {}", writer.pid));
    assert_eq!(sha256_of_device(&site.guest, &site.frozen_device()), frozen);
    assert_ne!(
        sha256_of_device(&site.guest, "/dev/vg/tv"),
        frozen,
        "the writer has to bite"
    );
    site.end(host);
}

/// Another volume that comes and goes makes a new generation, and costs nothing else.
fn under_other_changes(site: &Site) {
    for point in [Point::DuringRead, Point::AfterRead] {
        let (host, uri) = site.serve();
        let frozen = sha256_of_device(&site.guest, &site.frozen_device());
        let ambush = site.ambush(
            point,
            0,
            "lvcreate -qq -y -Wn -l 4 -n other vg /dev/ubdb
             lvremove -qq -y vg/other
             dd if=/dev/urandom of=/dev/vg/tv bs=1M count=64 oflag=direct conv=notrunc status=none",
        );
        let report = backup(&uri, &site.image, &site.luns, &ambush).unwrap();
        assert!(ambush.has_sprung());
        assert_image(&site.image, &frozen, &report);
        assert!(report.bytes_moved > 0 && report.bytes_direct > 0, "{report:?}");
        assert_eq!(site.metadata_snapshot(), "-");
        eprintln!("right: others come and go, {point:?}: {report:?}");
        // Once it was told, everything is direct again.
        thread::sleep(Duration::from_secs(2));
        let report = backup(&uri, &site.image, &site.luns, &Ambush::never()).unwrap();
        assert_image(&site.image, &frozen, &report);
        assert_eq!(report.bytes_nbd, 0, "{report:?}");
        site.end(host);
    }
}

/// A snapshot that was written to is not what was frozen, though it be read-only again.
fn snapshot_made_writable(site: &Site) {
    let (host, uri) = site.serve();
    let device = site.frozen_device();
    let ambush = site.ambush(
        Point::AfterRead,
        1,
        &format!(
            "lvchange -qq -prw {device}
             dd if=/dev/urandom of={device} bs=64k count=1 oflag=direct conv=notrunc status=none
             lvchange -qq -pr {device}"
        ),
    );
    let error = backup(&uri, &site.image, &site.luns, &ambush).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
    assert!(ambush.has_sprung() && !site.image.exists());
    eprintln!("right: written to: {error}");
    site.end(host);
}

/// The device is taken from under the agent, which holds it open.
fn snapshot_taken_away(site: &Site) {
    let (host, uri) = site.serve();
    let device = site.frozen_device();
    let refused = site.guest.try_run(&format!("lvremove -qq -y {device}"));
    assert_ne!(refused.status, 0, "it is held open");
    let name = device.replace("/dev/vg/", "vg-");
    let ambush = site.ambush(
        Point::DuringRead,
        1,
        &format!("dmsetup remove --force {name} || true"),
    );
    let error = backup(&uri, &site.image, &site.luns, &ambush).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
    assert!(ambush.has_sprung() && !site.image.exists());
    eprintln!("right: taken away: {error}");
    site.end(host);
}

/// It is not released, and not waited for without end: the image is read over NBD.
fn metadata_snapshot_of_somebody_else(site: &Site) {
    site.guest
        .run("dmsetup message vg-pool-tpool 0 reserve_metadata_snap");
    let theirs = site.metadata_snapshot();
    let (host, uri) = site.serve();
    let frozen = sha256_of_device(&site.guest, &site.frozen_device());
    let report = backup(&uri, &site.image, &site.luns, &Ambush::never()).unwrap();
    assert_image(&site.image, &frozen, &report);
    assert!(
        report.bytes_direct == 0 && report.bytes_nbd >= MAPPED,
        "{report:?}"
    );
    assert_eq!(site.metadata_snapshot(), theirs);
    site.guest
        .run("dmsetup message vg-pool-tpool 0 release_metadata_snap");
    eprintln!("right: somebody else's metadata snapshot: {report:?}");
    site.end(host);
}

/// A metadata device so slow that the agent is certainly killed while it reads it.
fn killed_between_reserve_and_release(site: &Site) {
    site.guest.run(SLOW);
    let killed = site.until_it_holds_the_metadata();
    site.guest.run(&format!("kill -9 {}", killed.pid));
    killed.wait();
    site.guest.run(FAST);
    assert_ne!(site.metadata_snapshot(), "-", "it has to be left behind");
    let left = site.frozen_device();

    // The next one finds both: releases the one, and tells of the other, which may be somebody's.
    let log = "/run/share/next.log";
    let mut next = site
        .guest
        .start(&format!("exec nbd-export serve {} 2>{log}", site.arguments()));
    let uris = next.lines_before("READY");
    assert_eq!(site.metadata_snapshot(), "-");
    site.guest.run(&format!("lvremove -qq -y {left}"));
    let frozen = sha256_of_device(&site.guest, &site.frozen_device());
    let report = backup(sole(&uris), &site.image, &site.luns, &Ambush::never()).unwrap();
    assert_image(&site.image, &frozen, &report);
    assert_eq!(report.bytes_nbd, 0, "{report:?}");
    site.end(next);
    let told = std::fs::read_to_string(site.guest.share.join("next.log")).unwrap();
    assert!(
        told.contains("killed while it held the metadata snapshot"),
        "{told}"
    );
    assert!(told.contains(left.trim_start_matches("/dev/")), "{told}");
    eprintln!("right: killed between reserve and release");
}

/// Nothing is frozen in a pool that is full, and `probe` says what to do about it ahead of time.
fn pool_full(site: &Site) {
    let probed = || {
        let json = site.guest.run("nbd-export probe /dev/vg/tv --json");
        let probed: Value = serde_json::from_str(&json).unwrap();
        let providers = probed["providers"].as_array().unwrap();
        let thin = providers.iter().find(|p| p["provider"] == "lvm-thin").unwrap();
        let remark = thin["remark"].as_str().unwrap_or_default().to_owned();
        (thin["fits"].as_bool().unwrap(), remark)
    };
    assert!(probed().0);
    site.guest.run(
        "lvchange -qq --errorwhenfull y vg/pool
         lvcreate -qq -y -V 300M --thinpool pool -n filler vg
         dd if=/dev/zero of=/dev/vg/filler bs=1M oflag=direct status=none || true",
    );
    let (fits, why) = probed();
    assert!(
        !fits && why.contains("lvextend -L +SIZE vg/pool") && why.contains("get errors"),
        "{why}"
    );
    let refused = site
        .guest
        .try_run("nbd-export serve vol=/dev/vg/tv --socket /run/s --control /run/c 2>&1");
    assert_ne!(refused.status, 0);
    assert!(refused.stdout.contains("nearly full"), "{}", refused.stdout);
    site.assert_nothing_left();
    // As soon as there is room again it goes on, with a word about how little there is.
    site.guest
        .run("lvremove -qq -y vg/filler; lvchange -qq --errorwhenfull n vg/pool");
    assert!(probed().0);
    let (host, _) = site.serve();
    site.end(host);
    eprintln!("right: a full pool: {why}");
}

/// The pool is moved to the other disk, and its old place overwritten.
fn pool_moved(site: &Site) {
    let (host, uri) = site.serve();
    let frozen = sha256_of_device(&site.guest, &site.frozen_device());
    let ambush = site.ambush(
        Point::AfterRead,
        1,
        "pvmove -qq -i 1 /dev/ubda /dev/ubdb
         lvcreate -qq -y -Wn -l 100%PVS -n thief vg /dev/ubda
         dd if=/dev/urandom of=/dev/vg/thief bs=1M oflag=direct status=none || true",
    );
    let report = backup(&uri, &site.image, &site.luns, &ambush).unwrap();
    assert!(ambush.has_sprung());
    assert_image(&site.image, &frozen, &report);
    assert!(
        report.bytes_moved > 0 && report.bytes_remapped_direct > 0,
        "{report:?}"
    );
    eprintln!("right: the pool moved: {report:?}");
    site.end(host);
    site.guest.run("lvremove -qq -y vg/thief");
}
