//! The kernel's NBD client: it mounts our exports in a guest, and an origin carries its file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tests::ambush::{Ambush, Point};
use tests::disk::run;
use tests::guest::{Guest, Rig};
use tests::needs_guests;
use tests::program::{Host, nbd_export, proxy_client};
use tests::site::text;

use super::{MIB, assert_image, backup, sha256_in, sha256_of_device};

const SIZE: u64 = 96 * MIB;

/// What every file below a directory holds.
fn sha256_of_files(guest: &Guest, directory: &str) -> String {
    sha256_in(
        guest,
        &format!("cd {directory}; find . -type f -print0 | sort -z | xargs -0 sha256sum"),
    )
}

/// A frozen ext4, made in the guest so that files and their digests are known, is served outside and mounted in the guest.
fn a_frozen_image_is_mounted_read_only(rig: &Rig, guest: &Guest, volume: &Path) {
    let files = guest.run(
        "mkfs.ext4 -q -F /dev/ubda; mkdir /made; mount /dev/ubda /made
         mkdir /made/a; cp -a /usr/share/perl /made/a/; dd if=/dev/urandom of=/made/noise bs=1M count=24 status=none
         truncate -s 10M /made/hole
         cd /made; find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
         cd /; umount /made",
    );
    let whole = sha256_of_device(guest, "/dev/ubda");
    let control = rig.path("frozen.control");
    let host = Host::serve(&[
        &format!("vol={}", volume.display()),
        "--identity",
        &format!("{}=lun0", volume.display()),
        "--listen",
        &format!("{}:10809", Rig::ADDRESS),
        "--insecure-plaintext",
        "--control",
        text(&control),
    ]);
    guest.run(&format!(
        "nbd-client {} 10809 /dev/nbd0 -N vol -readonly >/dev/null 2>&1 </dev/null",
        Rig::ADDRESS
    ));
    assert_eq!(
        guest.run("blockdev --getro --getsize64 /dev/nbd0"),
        format!("1\n{SIZE}\n")
    );
    assert_eq!(sha256_of_device(guest, "/dev/nbd0"), whole);
    guest.run("mkdir /mounted; mount -o ro,noload /dev/nbd0 /mounted");
    assert_eq!(sha256_of_files(guest, "/mounted"), files);
    let refused = guest.try_run("dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>&1");
    assert_ne!(refused.status, 0, "{refused:?}");
    assert_eq!(sha256_of_device(guest, "/dev/nbd0"), whole);
    guest.run("umount /mounted; nbd-client -d /dev/nbd0 >/dev/null 2>&1 </dev/null");
    let image = rig.path("vol.vbi.zst");
    proxy_client(&[
        "backup",
        host.uri("vol"),
        "--output",
        text(&image),
        "--host-is-this-machine",
    ]);
    assert!(host.terminate().success());
    eprintln!("right: a frozen image, mounted");
    its_backup_is_mounted_without_a_restore(guest, &image, &whole, &files);
}

/// The same bytes and files, read where they lie in the image.
fn its_backup_is_mounted_without_a_restore(guest: &Guest, image: &Path, whole: &str, files: &str) {
    let server = Host::serve_images(&[
        text(image),
        "--listen",
        &format!("{}:10811", Rig::ADDRESS),
        "--insecure-plaintext",
    ]);
    guest.run(&format!(
        "nbd-client {} 10811 /dev/nbd2 -N vol -readonly >/dev/null 2>&1 </dev/null",
        Rig::ADDRESS
    ));
    assert_eq!(sha256_of_device(guest, "/dev/nbd2"), whole);
    guest.run("mount -o ro,noload /dev/nbd2 /mounted");
    assert_eq!(sha256_of_files(guest, "/mounted"), files);
    guest.run("umount /mounted; nbd-client -d /dev/nbd2 >/dev/null 2>&1 </dev/null");
    assert!(server.terminate().success());
    eprintln!("right: a backup image, mounted");
}

/// An origin outside, with its copy area, and the guest's file system on it.
struct Carried {
    host: Host,
    control: String,
    luns: [(&'static str, PathBuf); 2],
    image: PathBuf,
}

impl Carried {
    fn new(rig: &Rig, guest: &Guest) -> Self {
        let (origin, copies) = (rig.disk("origin", SIZE), rig.disk("copies", 2 * SIZE));
        let control = text(&rig.path("origin.control")).to_owned();
        let host = Host::serve(&[
            "--origin",
            &format!("vol={}", origin.display()),
            "--copy-area",
            &format!("{},size={}", copies.display(), 2 * SIZE),
            "--identity",
            &format!("{}=lun0", origin.display()),
            "--identity",
            &format!("{}=lun1", copies.display()),
            "--origin-listen",
            &format!("{}:10810", Rig::ADDRESS),
            "--insecure-plaintext",
            "--control",
            &control,
        ]);
        guest.run(&format!(
            "nbd-client {} 10810 /dev/nbd1 -N vol >/dev/null 2>&1 </dev/null
             mkfs.ext4 -q -F /dev/nbd1; mkdir /carried; mount -o discard /dev/nbd1 /carried
             dd if=/dev/urandom of=/carried/large bs=1M count=32 status=none; sync",
            Rig::ADDRESS
        ));
        Self {
            host,
            control,
            luns: [("lun0", origin), ("lun1", copies)],
            image: rig.path("carried.image"),
        }
    }

    /// Freezes origin and file system at one instant, lets all go on, and backs the frozen image up while `strike` comes.
    fn assert_backs_up(&self, rig: &Rig, guest: &Arc<Guest>, round: usize, point: Point) {
        guest.run("fsfreeze --freeze /carried");
        let frozen = sha256_of_device(guest, "/dev/nbd1");
        let uri = nbd_export(&[
            "freeze",
            "vol",
            "--as",
            &round.to_string(),
            "--control",
            &self.control,
        ]);
        guest.run("fsfreeze --unfreeze /carried");

        let striking = Arc::clone(guest);
        let ambush = Ambush::new(point, 0, move || {
            striking
                .run("dd if=/dev/urandom of=/carried/large bs=1M count=32 conv=notrunc,fsync status=none");
        });
        let report = backup(uri.trim(), &self.image, &self.luns, &ambush).unwrap();
        let told = format!("round {round}, {point:?}: {report:?}");
        assert!(ambush.has_sprung(), "{told}");
        assert_eq!(report.bytes_nbd, 0, "{told}");
        assert!(report.bytes_direct > 32 * MIB && report.bytes_moved > 0, "{told}");
        let restored = rig.path("restored");
        proxy_client(&["restore", text(&self.image), "--output", text(&restored)]);
        run("e2fsck", &["-fn", text(&restored)]);
        std::fs::remove_file(restored).unwrap();
        assert_image(&self.image, &frozen, &report);
        nbd_export(&["thaw", &format!("vol@{round}"), "--control", &self.control]);
        eprintln!("right: {told}");
    }
}

#[test]
fn the_kernels_client_mounts_frozen_images_and_writes_to_origins() {
    needs_guests!("nbd-client", "mkfs.ext4", "fsfreeze", "zstd");
    let rig = Rig::new();
    let volume = rig.disk("volume", SIZE);
    let guest = Arc::new(rig.boot("client", &[&volume]));
    a_frozen_image_is_mounted_read_only(&rig, &guest, &volume);

    let carried = Carried::new(&rig, &guest);
    let writer = guest.start(
        "i=0
         while :; do
             i=$(((i + 1) % 20)); rm -f /carried/small.$i
             dd if=/dev/urandom of=/carried/small.$i bs=64k count=$((RANDOM % 16 + 1)) conv=fsync status=none
         done",
    );
    for (round, point) in Point::ALL.into_iter().enumerate() {
        carried.assert_backs_up(&rig, &guest, round, point);
    }
    guest.run(&format!("kill {}", writer.pid));
    writer.wait();
    // Nothing of the live file system suffered.
    let files = sha256_of_files(&guest, "/carried");
    guest.run("umount /carried; e2fsck -fn /dev/nbd1; mount /dev/nbd1 /carried");
    assert_eq!(sha256_of_files(&guest, "/carried"), files);
    guest.run("umount /carried; nbd-client -d /dev/nbd1 >/dev/null 2>&1 </dev/null");
    assert!(carried.host.terminate().success());
    let Ok(guest) = Arc::try_unwrap(guest) else {
        panic!("somebody still has the guest")
    };
    guest.shut_down();
}
