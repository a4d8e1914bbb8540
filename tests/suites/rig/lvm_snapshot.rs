//! Classic snapshots: the origin is overwritten in the guest while the proxy reads it, and what the snapshot keeps of it, from the LUN
//! outside. Every byte is the frozen one, or there is no image.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proxy_client::error::ErrorKind;
use tests::ambush::{Ambush, Point};
use tests::guest::{Guest, Process, Rig, Setup};
use tests::image::assert_nothing_left;
use tests::needs_guests;

use super::{MIB, assert_image, backup, sha256_of_device, sole};

/// Several batches of the proxy.
const SMALL: u64 = 48 * MIB;

/// 4,800 chunks of 64 KiB: more than an area of the snapshot's log has entries for.
const LARGE: u64 = 300 * MIB;

/// A guest does much here, each step of which is slow on a busy machine.
const DEADLINE: Duration = Duration::from_secs(600);

/// Writes all over the volume for as long as it runs, of many sizes. What it leaves is zeroes for the most part, so a LUN has to be proven by
/// the little that is not.
const HAMMER: &str = "exec python3 -c '
import os, mmap, random
f = os.open(\"/dev/vg/db\", os.O_WRONLY | os.O_DIRECT)
m = mmap.mmap(-1, 1 << 20)
size = os.lseek(f, 0, 2)
print(\"hammering\", flush=True)
while True:
    m[:4096] = os.urandom(4096)
    length = random.choice((4096, 4096, 65536, 1 << 20))
    at = random.randrange(0, size - length) // 4096 * 4096
    os.pwritev(f, [memoryview(m)[:length]], at)
'";

/// A guest with a logical volume of noise on the LUN, and room for snapshots.
struct Site {
    guest: Arc<Guest>,
    size: u64,
    image: PathBuf,
    luns: [(&'static str, PathBuf); 1],
}

impl Site {
    fn boot(rig: &Rig, size: u64, device: &str, prepare: &str) -> Self {
        let lun = rig.disk("lun0", 64 * MIB + 4 * size);
        let setup = Setup {
            disks: &[&lun],
            deadline: DEADLINE,
            ..Setup::default()
        };
        let guest = rig.boot_with("host", &setup);
        guest.run(&format!(
            "{prepare}
             pvcreate -qq -y {device}
             vgcreate -qq -s 1M vg {device}
             lvcreate -qq -y -Wn -L {size}b -n db vg
             dd if=/dev/urandom of=/dev/vg/db bs=1M oflag=direct status=none || true"
        ));
        Self {
            guest: Arc::new(guest),
            size,
            image: rig.path("image"),
            luns: [("lun0", lun)],
        }
    }

    fn serve(&self, more: &str) -> (Process, Vec<String>) {
        self.guest.serve(&format!(
            "db=/dev/vg/db {more} --identity /dev/ubda=lun0 --listen {}:10809 --insecure-plaintext --control /run/control",
            self.guest.address
        ))
    }

    /// The devices of the snapshots that are ours.
    fn snapshots(&self) -> Vec<String> {
        let paths = self.guest.run("lvs --noheadings -o lv_path @volmap");
        paths.split_whitespace().map(str::to_owned).collect()
    }

    /// What the sole snapshot holds, as the kernel gives it.
    fn frozen(&self) -> String {
        let [snapshot] = &self.snapshots()[..] else {
            panic!("{:?}", self.snapshots())
        };
        sha256_of_device(&self.guest, snapshot)
    }

    fn end(&self, host: Process) {
        self.guest.run(&format!("kill {}", host.pid));
        assert_eq!(host.wait().status, 0);
        assert!(self.snapshots().is_empty(), "{:?}", self.snapshots());
        let suspended = self.guest.run("dmsetup info -c --noheadings -o suspended");
        assert!(!suspended.contains("Suspended"), "{suspended}");
    }

    /// A script runs in the guest when it is let in.
    fn letting_in(&self, point: Point, wait: usize, script: &str) -> Ambush {
        let (guest, script) = (Arc::clone(&self.guest), script.to_owned());
        Ambush::new(point, wait, move || drop(guest.run(&script)))
    }
}

#[test]
fn every_byte_of_a_hammered_volume_is_the_frozen_one() {
    needs_guests!("lvm", "python3", "zstd");
    let rig = Rig::new();
    let site = Site::boot(&rig, LARGE, "/dev/ubda", "");
    hammered(&site);
    overwritten_whole(&site);
}

#[test]
fn what_is_overwritten_is_read_again_from_the_snapshot_or_there_is_no_image() {
    needs_guests!("lvm", "zstd");
    let rig = Rig::new();
    let site = Site::boot(&rig, SMALL, "/dev/ubda", "");
    overwritten_at_every_point(&site);
    several_at_once(&site);
    overflowing(&site);
    killed(&site);
}

/// The writer was there before the freeze, and goes on until the image is made.
fn hammered(site: &Site) {
    let mut writer = site.guest.start(HAMMER);
    assert_eq!(writer.line().as_deref(), Some("hammering"));
    let (host, uris) = site.serve("--snapshot-size 100%");
    let report = backup(sole(&uris), &site.image, &site.luns, &Ambush::never()).unwrap();
    let again = backup(
        sole(&uris),
        &site.image.with_extension("again"),
        &site.luns,
        &Ambush::never(),
    )
    .unwrap();
    site.guest.run(&format!("kill {}", writer.pid));
    let frozen = site.frozen();
    assert_image(&site.image, &frozen, &report);
    assert_image(&site.image.with_extension("again"), &frozen, &again);
    assert!(
        report.bytes_direct > 0 && report.frozen == again.frozen,
        "{report:?} {again:?}"
    );
    eprintln!("right: hammered: {report:?} {again:?}");
    site.end(host);
}

/// What is about to be read, is being read, or was read, is overwritten: it is read again from where the snapshot keeps it.
fn overwritten_at_every_point(site: &Site) {
    const OVERWRITE: &str = "dd if=/dev/urandom of=/dev/vg/db bs=1M count=16 oflag=direct status=none";
    for point in Point::ALL {
        let (host, uris) = site.serve("--freeze lvm-snapshot --snapshot-size 50%");
        let ambush = site.letting_in(point, 0, OVERWRITE);
        let report = backup(sole(&uris), &site.image, &site.luns, &ambush).unwrap();
        let told = format!("{point:?}: {report:?}");
        assert!(ambush.has_sprung(), "{told}");
        assert_image(&site.image, &site.frozen(), &report);
        assert!(
            report.bytes_moved > 0 && report.bytes_remapped_direct == report.bytes_moved,
            "{told}"
        );
        assert_eq!((report.bytes_direct, report.bytes_nbd), (site.size, 0), "{told}");
        eprintln!("right: {told}");
        site.end(host);
    }
}

/// The log goes on in a second area while the volume is read.
fn overwritten_whole(site: &Site) {
    let (host, uris) = site.serve("--snapshot-size 100%");
    let ambush = site.letting_in(
        Point::AfterRead,
        3,
        "dd if=/dev/urandom of=/dev/vg/db bs=1M oflag=direct status=none || true",
    );
    let report = backup(sole(&uris), &site.image, &site.luns, &ambush).unwrap();
    assert!(ambush.has_sprung());
    let frozen = site.frozen();
    assert_image(&site.image, &frozen, &report);
    assert_eq!(
        (report.bytes_direct, report.bytes_nbd),
        (site.size, 0),
        "{report:?}"
    );
    assert!(report.bytes_moved > 0, "{report:?}");
    // A backup that begins when everything has moved.
    let report = backup(sole(&uris), &site.image, &site.luns, &Ambush::never()).unwrap();
    assert_image(&site.image, &frozen, &report);
    assert_eq!(
        (report.bytes_direct, report.bytes_moved),
        (site.size, 0),
        "{report:?}"
    );
    eprintln!("right: overwritten whole: {report:?}");
    site.end(host);
}

/// Two frozen images of one origin, and for a while a third, each of its own instant. Making one costs the others their generations, not their places.
fn several_at_once(site: &Site) {
    let (host, _) = site.serve("--no-freeze --snapshot-size 40%");
    let mut frozen = Vec::new();
    for id in ["a", "b"] {
        let uri = site
            .guest
            .run(&format!("nbd-export freeze db --as {id} --control /run/control"));
        let snapshots = site.snapshots();
        let new = snapshots
            .iter()
            .find(|s| !frozen.iter().any(|(_, known, _)| known == *s));
        let digest = sha256_of_device(&site.guest, new.unwrap());
        frozen.push((uri.trim().to_owned(), new.unwrap().clone(), digest));
        site.guest
            .run("dd if=/dev/urandom of=/dev/vg/db bs=1M count=16 oflag=direct status=none");
    }
    for (uri, _, digest) in &frozen {
        let ambush = site.letting_in(
            Point::AfterRead,
            0,
            "nbd-export freeze db --as d --control /run/control
             dd if=/dev/urandom of=/dev/vg/db bs=1M seek=2 count=4 oflag=direct status=none
             nbd-export thaw db@d --control /run/control",
        );
        let report = backup(uri, &site.image, &site.luns, &ambush).unwrap();
        assert!(ambush.has_sprung());
        assert_image(&site.image, digest, &report);
        assert!(report.bytes_moved > 0, "{report:?}");
        assert_eq!(
            (report.bytes_direct, report.bytes_nbd),
            (site.size, 0),
            "{report:?}"
        );
        eprintln!("right: one of several: {report:?}");
    }
    site.end(host);
}

/// More is overwritten than the snapshot can keep: there is no image, and the exit code says why.
fn overflowing(site: &Site) {
    for point in Point::ALL {
        let (host, uris) = site.serve("--snapshot-size 4M");
        let overwrite = "dd if=/dev/urandom of=/dev/vg/db bs=1M count=16 oflag=direct status=none";
        let ambush = site.letting_in(point, 1, overwrite);
        let error = backup(sole(&uris), &site.image, &site.luns, &ambush).unwrap_err();
        assert!(ambush.has_sprung());
        assert_eq!(error.kind(), ErrorKind::FrozenImageGone, "{error}");
        assert_nothing_left(&site.image);
        eprintln!("right: overflow, {point:?}: {error}");
        site.end(host);
    }
}

/// What a killed agent leaves is found by its tag, and told of by the next one.
fn killed(site: &Site) {
    let (host, _) = site.serve("--snapshot-size 10%");
    site.guest.run(&format!("kill -KILL {}", host.pid));
    host.wait();
    let left = site.snapshots();
    assert_eq!(left.len(), 1, "{left:?}");
    let host = site.guest.start(
        "exec nbd-export serve db=/dev/vg/db --snapshot-size 10% --socket /run/nbd.sock --control /run/control \
         2>/run/share/log",
    );
    site.guest
        .run("while ! grep -q 'left by an agent' /run/share/log; do sleep 0.1; done");
    let log = std::fs::read_to_string(site.guest.share.join("log")).unwrap();
    let name = left[0].trim_start_matches("/dev/");
    assert!(log.contains(&format!("lvremove {name}")), "{log}");
    site.guest.run(&format!(
        "lvremove -qq -y {name}; while [ -z \"$(lvs --noheadings @volmap)\" ]; do sleep 0.1; done"
    ));
    site.end(host);
}

/// The window in which a copy is counted and not logged yet, held open for about a second: every write to the disk takes 300 ms. A
/// generation that was taken from the count would be confirmed for the old place, which is overwritten by then.
#[test]
fn a_copy_that_was_counted_and_not_logged_is_waited_for() {
    needs_guests!("lvm", "zstd");
    let rig = Rig::new();
    let prepare = "
        echo 'devices/global_filter=[\"r|^/dev/ubda$|\"]' >>/etc/lvm/lvmlocal.conf
        dmsetup create slow --table \"0 $(blockdev --getsz /dev/ubda) linear /dev/ubda 0\"";
    let site = Site::boot(&rig, SMALL, "/dev/mapper/slow", prepare);
    let serve = format!(
        "db=/dev/vg/db --snapshot-size 20% --identity /dev/mapper/slow=lun0 --listen {}:10809 --insecure-plaintext",
        site.guest.address
    );
    let (host, uris) = site.guest.serve(&serve);
    let snapshot = site.snapshots()[0].clone();
    let status = || site.guest.run(&format!("dmsetup status {snapshot}"));
    // The table of the disk is not followed: it is declared to be one.
    site.guest.run(
        "modprobe dm-delay
         dmsetup load slow --table \"0 $(blockdev --getsz /dev/ubda) delay /dev/ubda 0 0 /dev/ubda 0 300\"
         dmsetup suspend slow; dmsetup resume slow",
    );
    let before = status();
    let writer = site
        .guest
        .start("exec dd if=/dev/urandom of=/dev/vg/db bs=64k count=1 seek=1 oflag=direct status=none");
    while status() == before {}
    // What is read, is read when the origin was overwritten.
    let (guest, pid) = (Arc::clone(&site.guest), writer.pid);
    let ambush = Ambush::new(Point::BeforeRead, 0, move || {
        drop(guest.run(&format!("while kill -0 {pid} 2>/dev/null; do sleep 0.05; done")));
    });
    let report = backup(sole(&uris), &site.image, &site.luns, &ambush).unwrap();
    assert!(ambush.has_sprung());
    assert_eq!(writer.wait().status, 0);
    assert_image(&site.image, &site.frozen(), &report);
    assert!(report.bytes_direct > 0, "{report:?}");
    eprintln!("right: {report:?}");
    site.end(host);
}
