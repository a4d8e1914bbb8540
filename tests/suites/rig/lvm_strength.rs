//! What a snapshot of a mounted volume is good for: LVM has the kernel freeze the file system for it, so there is nothing to recover.

use serde_json::Value;
use tests::guest::{Bus, Guest, Process, Rig, Setup, VirtualDisk};
use tests::{needs_guests, needs_qemu_guests};

use super::MIB;

/// Files that come, grow, and go, for as long as it runs.
const WRITER: &str = "
    i=0
    while :; do
        i=$((i + 1))
        dd if=/dev/urandom of=/mnt/$((i % 20)) bs=4k count=$((i % 50 + 1)) status=none
        [ $((i % 3)) = 0 ] && rm -f /mnt/$((RANDOM % 20))
        [ $((i % 7)) = 0 ] && sync /mnt/$((i % 20))
    done";

/// A frozen image of a volume: the agent, the strength that it tells, and the snapshot.
fn freeze(guest: &Guest, volume: &str) -> (Process, String, String) {
    let (agent, _) = guest.serve(&format!(
        "vol=/dev/vg/{volume} --snapshot-size 50% --socket /run/nbd.sock --control /run/control"
    ));
    let listed: Value =
        serde_json::from_str(&guest.run("nbd-export list --json --control /run/control")).unwrap();
    let strength = listed["volumes"][0]["frozen"][0]["strength"]
        .as_str()
        .unwrap()
        .to_owned();
    let snapshot = guest.run("lvs --noheadings -o lv_path @volmap").trim().to_owned();
    (agent, strength, snapshot)
}

fn end(guest: &Guest, agent: Process) {
    guest.run(&format!("kill {}", agent.pid));
    assert_eq!(agent.wait().status, 0);
}

#[test]
fn a_snapshot_of_a_mounted_file_system_has_nothing_to_recover() {
    needs_guests!("lvm", "mkfs.ext4", "mkfs.xfs", "xfs_logprint");
    let rig = Rig::new();
    let disk = rig.disk("lun0", 1024 * MIB);
    let guest = rig.boot_with(
        "host",
        &Setup {
            disks: &[&disk],
            ..Setup::default()
        },
    );
    nothing_to_recover(&guest, "/dev/ubda");
}

/// A newer kernel, on which file systems are frozen from below and from above in one count.
#[test]
fn a_snapshot_has_nothing_to_recover_on_a_newer_kernel() {
    needs_qemu_guests!("lvm", "mkfs.ext4", "mkfs.xfs", "xfs_logprint");
    let rig = Rig::new();
    let disk = VirtualDisk {
        file: &rig.disk("lun0", 1024 * MIB),
        bus: Bus::Virtio,
        block_size: 512,
        names: "",
    };
    nothing_to_recover(&rig.boot_qemu("host", &[disk]), "/dev/vda");
}

fn nothing_to_recover(guest: &Guest, disk: &str) {
    guest.run(&format!(
        "pvcreate -qq -y {disk}
         vgcreate -qq -s 1M vg {disk}
         lvcreate -qq -y -Wn -L 64M -n ext4 vg
         lvcreate -qq -y -Wn -L 320M -n xfs vg
         lvcreate -qq -y -Wn --thinpool pool -L 128M -c 64k --poolmetadatasize 8M vg
         lvcreate -qq -y -V 64M --thinpool pool -n thin vg
         mkfs.ext4 -q /dev/vg/ext4; mkfs.ext4 -q /dev/vg/thin; mkfs.xfs -q /dev/vg/xfs"
    ));
    for volume in ["ext4", "thin", "xfs"] {
        let (agent, strength, _) = freeze(guest, volume);
        assert_eq!(strength, "crash-consistent", "{volume} is not mounted");
        end(guest, agent);
        guest.run(&format!("mount /dev/vg/{volume} /mnt"));
        let writer = guest.start(WRITER);
        guest.run("sleep 2");
        let (agent, strength, snapshot) = freeze(guest, volume);
        assert_eq!(strength, "file-system", "{volume}");
        if volume == "xfs" {
            xfs_is_in_order(guest, &snapshot);
        } else {
            ext4_is_in_order(guest, &format!("/dev/vg/{volume}"), &snapshot);
        }
        guest.run(&format!("kill {}; sleep 1; umount /mnt", writer.pid));
        end(guest, agent);
        eprintln!("right: {volume}");
    }
}

fn ext4_is_in_order(guest: &Guest, live: &str, snapshot: &str) {
    let needs_recovery = |device: &str| {
        guest
            .run(&format!("dumpe2fs -h {device} 2>/dev/null"))
            .contains("needs_recovery")
    };
    assert!(needs_recovery(live), "it is mounted");
    assert!(!needs_recovery(snapshot));
    guest.run(&format!("e2fsck -fn {snapshot}"));
}

/// XFS dirties the log of what it freezes on purpose, so that a mount looks for files that were deleted while they were open: the superblock
/// is in it, and nothing else.
fn xfs_is_in_order(guest: &Guest, snapshot: &str) {
    let log = guest.try_run(&format!("xfs_logprint -t {snapshot} 2>&1")).stdout;
    let logged = |what: &str| {
        log.lines()
            .filter(|line| line.trim_start().starts_with(what))
            .count()
    };
    let superblocks = logged("SUPER Block Buffer");
    assert!(superblocks > 0 && logged("BUF:  #regs") == superblocks, "{log}");
    assert_eq!(logged("INO:"), 0, "{log}");
    // It complains of the log, and of the counters of the superblock, which are what is in there.
    let repair = guest.try_run(&format!("xfs_repair -n {snapshot} 2>&1")).stdout;
    assert!(repair.contains("Phase 7"), "{repair}");
    for told in repair.lines().filter(|line| line.contains("counted")) {
        assert!(told.starts_with("sb_"), "{repair}");
    }
}
