//! Mounted file systems, of which only what somebody has is backed up: the host gives zeroes for the rest, whichever way it is read.

use tests::ambush::Ambush;
use tests::guest::{Guest, Rig, Setup};
use tests::needs_guests;

use super::{MIB, backup, sha256_of_image, sole};

/// Fills both file systems, and gives most of that back.
const FILL: &str = "
    for mount in a b; do
        for i in 1 2 3 4; do
            dd if=/dev/urandom of=/mnt/$mount/gone$i bs=1M count=8 status=none
            dd if=/dev/urandom of=/mnt/$mount/kept$i bs=64k count=$((i * 3)) status=none
        done
        sync /mnt/$mount
        rm /mnt/$mount/gone?
        mkdir /mnt/$mount/more; cp /mnt/$mount/kept? /mnt/$mount/more
    done";

/// The digests of all files below a mount point.
fn files(guest: &Guest, mount: &str) -> String {
    guest.run(&format!("cd {mount}; find . -type f | sort | xargs sha256sum"))
}

#[test]
fn of_a_file_system_what_nobody_has_is_left_out() {
    needs_guests!("lvm", "mkfs.ext4", "mkfs.xfs", "e2fsck");
    let rig = Rig::new();
    let disk = rig.disk("lun0", 1024 * MIB);
    let restored = rig.disk("restored", 320 * MIB);
    let setup = Setup {
        disks: &[&disk, &restored],
        ..Setup::default()
    };
    let guest = rig.boot_with("host", &setup);
    guest.run(
        "pvcreate -qq -y /dev/ubda
         vgcreate -qq -s 1M vg /dev/ubda
         lvcreate -qq -y -Wn --thinpool pool -L 200M -c 64k --poolmetadatasize 8M vg
         lvcreate -qq -y -V 128M --thinpool pool -n thin vg
         lvcreate -qq -y -Wn -L 320M -n classic vg
         mkfs.ext4 -q /dev/vg/thin; mkfs.xfs -q /dev/vg/classic
         mkdir /mnt/a /mnt/b /mnt/look
         mount /dev/vg/thin /mnt/a; mount /dev/vg/classic /mnt/b",
    );
    guest.run(FILL);
    let luns = [("lun0", disk.clone())];
    for (mount, size, look) in [
        ("a", 128 * MIB, "ro,noload"),
        ("b", 320 * MIB, "ro,norecovery,nouuid"),
    ] {
        let mount_point = format!("/mnt/{mount}");
        let before = files(&guest, &mount_point);
        let (agent, uris) = guest.serve(&format!(
            "--set one --filesystem {mount_point} --identity /dev/ubda=lun0 --snapshot-size 64M \
             --listen {}:10809 --insecure-plaintext",
            guest.address
        ));
        // The live one goes on.
        guest.run(&format!(
            "rm {mount_point}/kept1; dd if=/dev/urandom of={mount_point}/new bs=1M count=20 status=none; sync"
        ));
        let uri = sole(&uris);
        let (direct, through_host) = (rig.path("direct"), rig.path("nbd"));
        let report = backup(uri, &direct, &luns, &Ambush::never()).unwrap();
        assert!(report.bytes_direct > 0 && report.bytes_nbd == 0, "{report:?}");
        assert!(report.bytes_zero > size / 2, "{report:?}");
        assert!(report.bytes_direct < size / 3, "{report:?}");
        let all_over_nbd = backup(uri, &through_host, &[], &Ambush::never()).unwrap();
        assert_eq!(all_over_nbd.root, report.root, "every way gives the same bytes");
        assert_eq!(sha256_of_image(&direct), sha256_of_image(&through_host));
        tests::disk::run(
            "bash",
            &[
                "-c",
                "zstd -dcq -- \"$0\" | dd of=\"$1\" bs=1M conv=notrunc status=none",
                direct.to_str().unwrap(),
                restored.to_str().unwrap(),
            ],
        );
        if mount == "a" {
            guest.run("e2fsck -fn /dev/ubdb");
        }
        guest.run(&format!("mount -o {look} /dev/ubdb /mnt/look"));
        let after = files(&guest, "/mnt/look");
        guest.run("umount /mnt/look");
        assert_eq!(after, before);
        guest.run(&format!("kill {}", agent.pid));
        assert_eq!(agent.wait().status, 0);
        assert_eq!(guest.run("lvs --noheadings @volmap").trim(), "");
        std::fs::remove_file(&direct).unwrap();
        std::fs::remove_file(&through_host).unwrap();
        eprintln!("right: {mount}: {} of {size} bytes read", report.bytes_direct);
    }
}

/// A freeze does nothing for what is mounted read-only: the log stays as it is, and the records of free space are those from before it.
#[test]
fn of_a_file_system_that_was_mounted_without_its_log_all_is_read() {
    needs_guests!("lvm", "mkfs.ext4", "mkfs.xfs", "xfs_io");
    let rig = Rig::new();
    let disk = rig.disk("lun0", 1024 * MIB);
    let setup = Setup {
        disks: &[&disk],
        ..Setup::default()
    };
    let guest = rig.boot_with("host", &setup);
    guest.run(
        "pvcreate -qq -y /dev/ubda
         vgcreate -qq -s 1M vg /dev/ubda
         lvcreate -qq -y -Wn -L 128M -n ext4 vg
         lvcreate -qq -y -Wn -L 320M -n xfs vg
         mkfs.ext4 -q /dev/vg/ext4; mkfs.xfs -q /dev/vg/xfs
         mkdir /mnt/a /mnt/b
         mount /dev/vg/ext4 /mnt/a; mount /dev/vg/xfs /mnt/b",
    );
    guest.run(FILL);
    guest.run(
        "for mount in a b; do
             sync /mnt/$mount/more/*
             xfs_io -x -c 'shutdown -f' /mnt/$mount
             umount /mnt/$mount
         done
         mount -o ro,noload /dev/vg/ext4 /mnt/a; mount -o ro,norecovery /dev/vg/xfs /mnt/b",
    );
    for (mount, volume) in [("a", "ext4"), ("b", "xfs")] {
        let on_device = guest.run(&format!(
            "blockdev --flushbufs /dev/vg/{volume}; sha256sum < /dev/vg/{volume}"
        ));
        let (agent, uris) = guest.serve(&format!(
            "--set one --filesystem /mnt/{mount} --identity /dev/ubda=lun0 --snapshot-size 64M \
             --listen {}:10809 --insecure-plaintext",
            guest.address
        ));
        let image = rig.path(volume);
        backup(sole(&uris), &image, &[], &Ambush::never()).unwrap();
        assert_eq!(sha256_of_image(&image).trim(), on_device.trim(), "{volume}");
        guest.run(&format!("kill {}", agent.pid));
        assert_eq!(agent.wait().status, 0);
        std::fs::remove_file(&image).unwrap();
        eprintln!("right: {volume}");
    }
}
