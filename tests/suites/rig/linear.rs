//! Logical volumes of several segments on two disks: the way through device-mapper, from the kernel's own tables.

use std::path::PathBuf;

use tests::ambush::Ambush;
use tests::guest::{Guest, Rig};
use tests::needs_guests;

use super::{MIB, assert_image, backup, sha256_in, sha256_of_device, sole};

/// `vg/lv` of 96 MiB and `vg/files` of 320 MiB, in turn on both disks.
const VOLUMES: &str = "
    pvcreate -qq -y /dev/ubda /dev/ubdb
    vgcreate -qq -s 1M vg /dev/ubda /dev/ubdb
    lvcreate -qq -y -Wn -l 24 -n lv vg /dev/ubda:8-31
    lvextend -qq -l +24 vg/lv /dev/ubdb:40-63
    lvextend -qq -l +24 vg/lv /dev/ubda:50-73
    lvextend -qq -l +24 vg/lv /dev/ubdb:0-23
    lvcreate -qq -y -Wn -l 80 -n files vg /dev/ubda:100-179
    lvextend -qq -l +80 vg/files /dev/ubdb:100-179
    lvextend -qq -l +80 vg/files /dev/ubda:200-279
    lvextend -qq -l +80 vg/files /dev/ubdb:200-279
    dmsetup table";

/// Declares the disks: a guest's have no identity.
const IDENTITIES: &str = "--identity /dev/ubda=lun0 --identity /dev/ubdb=lun1";

/// A guest with [`VOLUMES`].
struct Site {
    guest: Guest,
    image: PathBuf,
    luns: [(&'static str, PathBuf); 2],
}

impl Site {
    fn boot(rig: &Rig) -> Self {
        let disks = [rig.disk("lun0", 384 * MIB), rig.disk("lun1", 384 * MIB)];
        let guest = rig.boot("host", &[&disks[0], &disks[1]]);
        let tables = guest.run(VOLUMES);
        assert_eq!(tables.matches(" linear ").count(), 8, "{tables}");
        let [first, second] = disks;
        Self {
            guest,
            image: rig.path("image"),
            luns: [("lun0", first), ("lun1", second)],
        }
    }

    /// Serves a volume, backs it up from both disks while it is served, and gives back what `digest` said meanwhile. All data has
    /// to be read directly, and both disks are needed for that.
    fn assert_backs_up(&self, volume: &str, more: &str, data: u64, digest: impl Fn(&Guest) -> String) {
        let listen = format!("--listen {}:10809 --insecure-plaintext", self.guest.address);
        let arguments = format!("vol={volume} {IDENTITIES} {listen} {more}");
        let (host, uris) = self.guest.serve(&arguments);
        let frozen = digest(&self.guest);
        for given in [&self.luns[..], &self.luns[..1], &self.luns[1..]] {
            let report = backup(sole(&uris), &self.image, given, &Ambush::never()).unwrap();
            let told = format!("{volume} from {given:?}: {report:?}");
            assert_eq!(report.bytes_direct + report.bytes_nbd, data, "{told}");
            assert_eq!(report.bytes_nbd == 0, given.len() == 2, "{told}");
            assert!(report.bytes_direct > 0, "{told}");
            assert_image(&self.image, &frozen, &report);
            eprintln!("right: {told}");
        }
        self.guest.run(&format!("kill {}", host.pid));
        assert_eq!(host.wait().status, 0);
    }
}

#[test]
fn volumes_in_segments_on_two_disks_are_read_from_both() {
    needs_guests!("lvm", "mkfs.xfs", "mkfs.ext4", "zstd");
    let rig = Rig::new();
    let site = Site::boot(&rig);
    let guest = &site.guest;

    // ext4 on the volume: a file that is quiesced, then all of it when it is read-only.
    guest.run(
        "mkfs.ext4 -q -F /dev/vg/lv; mkdir /ext4; mount /dev/vg/lv /ext4
         dd if=/dev/urandom of=/ext4/file bs=1M count=72 status=none",
    );
    site.assert_backs_up("/ext4/file", "--freeze quiesce", 72 * MIB, |guest| {
        sha256_in(guest, "cat /ext4/file")
    });
    guest.run("umount /ext4; lvchange -qq -pr vg/lv");
    site.assert_backs_up("/dev/vg/lv", "--freeze static", 96 * MIB, |guest| {
        sha256_of_device(guest, "/dev/vg/lv")
    });

    // XFS on the volume: a clone of a file that is written to all the time. Its extents are in several allocation groups.
    guest.run(
        "mkfs.xfs -q /dev/vg/files; mkdir /xfs; mount /dev/vg/files /xfs
         dd if=/dev/urandom of=/xfs/vm.img bs=1M count=128 status=none; sync",
    );
    let before = sha256_in(guest, "cat /xfs/vm.img");
    let writer = guest.start(
        "while :; do
             dd if=/dev/urandom of=/xfs/vm.img bs=64k seek=$((RANDOM % 2048)) count=1 conv=notrunc oflag=direct status=none
         done",
    );
    site.assert_backs_up("/xfs/vm.img", "--freeze reflink", 128 * MIB, |guest| {
        sha256_in(guest, "cat /xfs/.vm.img.*.frozen")
    });
    guest.run(&format!("kill {}", writer.pid));
    assert_ne!(
        sha256_in(guest, "cat /xfs/vm.img"),
        before,
        "the writer changed the live file"
    );
    site.guest.shut_down();
}
