//! What `doctor` finds on a real kernel with LVM, md, swap and partitions, and that `backup` keeps away from it.

use serde_json::Value;
use tests::guest::{Guest, Rig};
use tests::needs_guests;

use super::MIB;

/// Kinds of the dangers on a LUN of the guest, with the devices that they are about.
fn dangers(guest: &Guest, lun: &str) -> Vec<(String, String)> {
    let output = guest.try_run(&format!("proxy-client doctor --json --lun id:lun={lun}"));
    let examination: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"));
    let findings = examination["luns"][0]["findings"].as_array().unwrap().iter();
    let dangers: Vec<_> = findings
        .filter(|finding| finding["severity"] == "danger")
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap().to_owned();
            (text("kind"), text("device"))
        })
        .collect();
    assert_eq!(output.status, i32::from(!dangers.is_empty()), "{examination}");
    dangers
}

fn is(kind: &str, device: &str) -> Vec<(String, String)> {
    vec![(kind.to_owned(), device.to_owned())]
}

#[test]
fn the_doctor_finds_what_uses_a_lun() {
    needs_guests!("lvm", "mdadm", "addpart", "mkswap");
    let rig = Rig::new();
    let disks = [rig.disk("a", 64 * MIB), rig.disk("b", 64 * MIB)];
    let setup = tests::guest::Setup {
        disks: &[&disks[0], &disks[1]],
        modules: &["raid1"],
        ..Default::default()
    };
    let guest = rig.boot_with("proxy", &setup);
    assert_eq!(dangers(&guest, "/dev/ubda"), []);

    // A volume group on a partition: the disk is not safe, and its logical volumes are what is active.
    guest.run(
        "addpart /dev/ubda 1 2048 100000
         pvcreate -qq -y /dev/ubda1; vgcreate -qq -s 1M my-vg /dev/ubda1; lvcreate -qq -y -Wn -L 16M -n lv my-vg",
    );
    let active = is("volume-group", "/dev/mapper/my--vg-lv");
    assert_eq!(dangers(&guest, "/dev/ubda"), active);
    assert_eq!(dangers(&guest, "/dev/ubda1"), active);
    let refused = guest.try_run(
        "proxy-client --error-format json backup nbd://127.0.0.1:9/x --output /tmp/image --lun id:lun=/dev/ubda 2>&1",
    );
    assert_eq!(refused.status, 1);
    assert!(
        refused.stdout.contains("lun-in-use") && refused.stdout.contains("vgchange --activate n my-vg"),
        "{refused:?}"
    );
    guest.run("vgchange -qq --activate n my-vg");
    assert_eq!(dangers(&guest, "/dev/ubda"), [], "what sleeps is no danger");
    guest.run("vgremove -qq -y my-vg; pvremove -qq -y /dev/ubda1");

    // Swap on the partition.
    guest.run("mkswap -q /dev/ubda1; swapon /dev/ubda1");
    assert_eq!(dangers(&guest, "/dev/ubda"), is("swap", "/dev/ubda1"));
    guest.run("swapoff /dev/ubda1; delpart /dev/ubda 1");

    // An array, running and stopped.
    guest.run(
        "mdadm --quiet --create /dev/md7 --run --level=1 --raid-devices=2 --metadata=1.2 /dev/ubda /dev/ubdb",
    );
    assert_eq!(dangers(&guest, "/dev/ubda"), is("array", "/dev/md7"));
    assert_eq!(dangers(&guest, "/dev/ubdb"), is("array", "/dev/md7"));
    guest.run("mdadm --quiet --stop /dev/md7; mdadm --zero-superblock /dev/ubda /dev/ubdb");
    assert_eq!(dangers(&guest, "/dev/ubda"), []);

    // Anything else of device-mapper.
    guest.run("dmsetup create mine --table '0 2048 linear /dev/ubdb 0'");
    assert_eq!(dangers(&guest, "/dev/ubdb"), is("held", "/dev/mapper/mine"));
    assert_eq!(dangers(&guest, "/dev/ubda"), []);
    guest.run("dmsetup remove mine");
    assert_eq!(dangers(&guest, "/dev/ubdb"), []);
}
