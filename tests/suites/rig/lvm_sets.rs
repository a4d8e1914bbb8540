//! Sets of logical volumes, classic and thin, with mounted file systems. A writer goes from one volume to the next: what is frozen is of one
//! instant. User-Mode Linux' kernel does not let LVM suspend a volume whose file system is frozen already, so a hook has to stop the writer
//! there; a newer one does.

use serde_json::Value;
use tests::guest::{Bus, Guest, Process, Rig, Setup, VirtualDisk};
use tests::{needs_guests, needs_qemu_guests};

use super::MIB;

/// Writes a number to each file system, one after the other, and begins again with the next number. None is ever ahead of those before it,
/// and none is more than one behind.
const WRITER: &str = "exec python3 -c '
import os
files = [os.open(\"/mnt/%s/n\" % name, os.O_WRONLY | os.O_CREAT) for name in (\"a\", \"b\", \"c\")]
n = 0
while True:
    n += 1
    for f in files:
        os.pwrite(f, b\"%020d\" % n, 0)
        if n % 3 == 0:
            os.fsync(f)
    if n == 10:
        print(\"writing\", flush=True)
'";

/// The number in a snapshot of a volume.
fn number_in(guest: &Guest, origin: &str, options: &str) -> u64 {
    let number = guest.run(&format!(
        "snapshot=$(lvs --noheadings -o lv_path -S 'origin={origin} && lv_tags=volmap')
         mount -o ro,{options} $snapshot /mnt/frozen
         cat /mnt/frozen/n; umount /mnt/frozen"
    ));
    number.trim().parse().unwrap()
}

#[test]
fn a_set_of_mounted_logical_volumes_is_of_one_instant() {
    needs_guests!("lvm", "mkfs.ext4", "mkfs.xfs", "python3");
    let rig = Rig::new();
    let disk = rig.disk("lun0", 1024 * MIB);
    let setup = Setup {
        disks: &[&disk],
        ..Setup::default()
    };
    let guest = rig.boot_with("host", &setup);
    let writer = begin_to_write(&guest, "/dev/ubda");
    without_a_hook(&guest);
    let pid = writer.pid;
    let (agent, _) = guest.serve(&format!(
        "{SERVE} --pre-freeze 'kill -STOP {pid}' --post-freeze 'kill -CONT {pid}' --post-thaw 'kill -CONT {pid}'"
    ));
    frozen_at_one_instant(&guest, "application", "hook");
    end(&guest, &writer, agent);
}

/// The agent freezes the file systems itself, and LVM once more.
#[test]
fn a_newer_kernel_needs_no_hook_for_it() {
    needs_qemu_guests!("lvm", "mkfs.ext4", "mkfs.xfs", "python3");
    let rig = Rig::new();
    let disk = VirtualDisk {
        file: &rig.disk("lun0", 1024 * MIB),
        bus: Bus::Virtio,
        block_size: 512,
        names: "",
    };
    let guest = rig.boot_qemu("host", &[disk]);
    let writer = begin_to_write(&guest, "/dev/vda");
    let (agent, _) = guest.serve(SERVE);
    frozen_at_one_instant(&guest, "file-system", "file-system");
    // No freeze is left that nobody ends.
    guest.run("for name in a b c; do touch /mnt/$name/more; sync /mnt/$name/more; done");
    end(&guest, &writer, agent);
    guest.run("umount /mnt/a /mnt/b /mnt/c");
}

const SERVE: &str = "--no-freeze --set all --volume a=/dev/vg/a --volume b=/dev/vg/b --filesystem /mnt/c --snapshot-size 64M \
     --socket /run/nbd.sock --control /run/control";

/// Three volumes with file systems, and the writer at work on them.
fn begin_to_write(guest: &Guest, disk: &str) -> Process {
    guest.run(&format!(
        "pvcreate -qq -y {disk}
         vgcreate -qq -s 1M vg {disk}
         lvcreate -qq -y -Wn -L 64M -n a vg
         lvcreate -qq -y -Wn --thinpool pool -L 200M -c 64k --poolmetadatasize 8M vg
         lvcreate -qq -y -V 64M --thinpool pool -n b vg
         lvcreate -qq -y -Wn -L 320M -n c vg
         mkfs.ext4 -q /dev/vg/a; mkfs.ext4 -q /dev/vg/b; mkfs.xfs -q /dev/vg/c
         mkdir /mnt/a /mnt/b /mnt/c /mnt/frozen
         for name in a b c; do mount /dev/vg/$name /mnt/$name; done"
    ));
    let mut writer = guest.start(WRITER);
    assert_eq!(writer.line().as_deref(), Some("writing"));
    writer
}

/// Freezes and thaws, again and again.
fn frozen_at_one_instant(guest: &Guest, strength: &str, held_by: &str) {
    let mut before = 0;
    for round in 0..4 {
        guest.run("nbd-export freeze all --as now --control /run/control");
        let [a, b, c] = [("a", "noload"), ("b", "noload"), ("c", "norecovery,nouuid")]
            .map(|(origin, options)| number_in(guest, origin, options));
        assert!(a >= b && b >= c && a - c <= 1, "not of one instant: {a} {b} {c}");
        assert!(a > before, "the writer has to go on");
        before = a;
        let listed = guest.run("nbd-export list --json --control /run/control");
        let listed: Value = serde_json::from_str(&listed).unwrap();
        for volume in listed["volumes"].as_array().unwrap() {
            let frozen = &volume["frozen"][0];
            assert_eq!(frozen["strength"], strength, "{listed}");
            assert_eq!(frozen["set"]["held_by"], held_by, "{listed}");
        }
        let window = &listed["volumes"][0]["frozen"][0]["set"]["window_ms"];
        eprintln!("right: round {round}: {a} {b} {c}, held for {window} ms");
        guest.run("nbd-export thaw all@now --control /run/control");
    }
}

fn end(guest: &Guest, writer: &Process, agent: Process) {
    guest.run(&format!("kill {} {}", writer.pid, agent.pid));
    assert_eq!(agent.wait().status, 0);
    assert_eq!(guest.run("lvs --noheadings @volmap").trim(), "");
}

/// It is refused before LVM is asked, which would fail half-way through and leave a device behind.
fn without_a_hook(guest: &Guest) {
    let devices = guest.run("dmsetup ls");
    let (agent, _) = guest.serve(SERVE);
    let refused = guest.try_run("nbd-export freeze all --as now --control /run/control 2>&1");
    assert_ne!(refused.status, 0);
    assert!(refused.stdout.contains("--pre-freeze"), "{}", refused.stdout);
    assert_eq!(guest.run("dmsetup ls"), devices);
    guest.run(&format!("kill {}", agent.pid));
    assert_eq!(agent.wait().status, 0);
}
