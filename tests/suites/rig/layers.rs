//! What can lie between a volume and its disks, on a kernel that has it: stripes, mirrors, ciphertext, a partition in a volume, and paths.

use std::path::{Path, PathBuf};

use tests::ambush::Ambush;
use tests::guest::{Guest, Rig, Setup};
use tests::needs_guests;

use super::iscsi::Target;
use super::{MIB, assert_image, backup, sha256_of_device, sole};

/// On four disks: a volume of two kinds of stripes with a linear piece between them; mirrors of both kinds; ciphertext by hand; and a
/// volume with a partition in it, as kpartx maps it.
const VOLUMES: &str = "
    pvcreate -qq -y /dev/ubda /dev/ubdb /dev/ubdc
    vgcreate -qq -s 1M vg /dev/ubda /dev/ubdb /dev/ubdc
    lvcreate -qq -y -Wn -i 3 -I 64k -l 30 -n striped vg
    lvextend -qq -i 1 -l +8 vg/striped /dev/ubdb
    lvextend -qq -i 2 -I 16k -l +16 vg/striped /dev/ubdc /dev/ubda
    lvcreate -qq -y -Wn --type mirror --mirrorlog core -m 1 -l 24 -n mirror vg /dev/ubda /dev/ubdb
    lvcreate -qq -y -Wn --type raid1 -m 1 -l 24 -n raid vg /dev/ubdc /dev/ubda
    lvcreate -qq -y -Wn -l 32 -n parted vg
    for volume in striped mirror raid parted; do
        dd if=/dev/urandom of=/dev/vg/$volume bs=1M oflag=direct status=none || true
    done
    dmsetup create part --table '0 40961 linear /dev/vg/parted 2049'
    dmsetup create secret --table '0 65536 crypt aes-xts-plain64 \
        000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 0 /dev/ubdd 64'
    dd if=/dev/urandom of=/dev/mapper/secret bs=1M oflag=direct status=none || true
    for i in $(seq 300); do
        dmsetup status vg-mirror | grep -q ' \\([0-9]*\\)/\\1 1 AA ' && dmsetup status vg-raid | grep -q ' AA .* idle ' && break
        sleep 0.1
    done
    dmsetup table; dmsetup status";

const DISKS: [&str; 4] = ["lun0", "lun1", "lun2", "lun3"];

struct Site {
    guest: Guest,
    image: PathBuf,
    luns: Vec<(String, PathBuf)>,
}

impl Site {
    fn boot(rig: &Rig) -> Self {
        let disks = DISKS.map(|name| rig.disk(name, 128 * MIB));
        let paths: Vec<&Path> = disks.iter().map(PathBuf::as_path).collect();
        let setup = Setup {
            disks: &paths,
            modules: &[
                "raid1",
                "dm-raid",
                "xts",
                "dm-crypt",
                "sd_mod",
                "iscsi_tcp",
                "dm-multipath",
                "dm-round-robin",
            ],
            ..Setup::default()
        };
        Self {
            guest: rig.boot_with("host", &setup),
            image: rig.path("image"),
            luns: DISKS.map(str::to_owned).into_iter().zip(disks).collect(),
        }
    }

    fn identities() -> String {
        let named = ["ubda", "ubdb", "ubdc", "ubdd"].into_iter().zip(DISKS);
        named
            .map(|(device, lun)| format!("--identity /dev/{device}={lun} "))
            .collect()
    }

    /// Backs a device up that lies still, and says how many bytes were read directly, and how many by the host. The image is right.
    fn back_up(&self, device: &str) -> (u64, u64) {
        let (host, uris) = self.guest.serve(&format!(
            "vol={device} {} --freeze static --assume-exclusive --listen {}:10809 --insecure-plaintext",
            Self::identities(),
            self.guest.address
        ));
        let frozen = sha256_of_device(&self.guest, device);
        let luns: Vec<(&str, PathBuf)> = self.luns.iter().map(|(n, p)| (n.as_str(), p.clone())).collect();
        let report = backup(sole(&uris), &self.image, &luns, &Ambush::never()).unwrap();
        assert_image(&self.image, &frozen, &report);
        self.guest.run(&format!("kill {}", host.pid));
        assert_eq!(host.wait().status, 0);
        eprintln!(
            "right: {device}: {} direct, {} by the host",
            report.bytes_direct, report.bytes_nbd
        );
        (report.bytes_direct, report.bytes_nbd)
    }

    /// What the host says of a device's first extent.
    fn map(&self, device: &str) -> String {
        self.guest
            .run(&format!("nbd-export map {device} {} --json", Self::identities()))
    }
}

#[test]
fn what_lies_between_volumes_and_disks_is_followed_or_says_why_not() {
    needs_guests!("lvm", "tgtd", "iscsistart", "zstd");
    let rig = Rig::new();
    let mut site = Site::boot(&rig);
    let tables = site.guest.run(VOLUMES);
    for target in [
        " striped 3 128 ",
        " striped 2 32 ",
        " mirror core ",
        " raid raid1 ",
    ] {
        assert!(tables.contains(target), "{tables}");
    }
    assert_eq!(site.back_up("/dev/mapper/vg-striped"), (54 * MIB, 0));
    assert_eq!(site.back_up("/dev/mapper/vg-mirror"), (24 * MIB, 0));
    assert_eq!(site.back_up("/dev/mapper/vg-raid"), (24 * MIB, 0));
    assert_eq!(site.back_up("/dev/mapper/part"), (40961 * 512, 0));
    ciphertext(&site);
    a_leg_that_failed(&site);
    several_paths(&rig, &mut site);
}

/// Through the host as plain text, or from the disk as what it is.
fn ciphertext(site: &Site) {
    assert_eq!(site.back_up("/dev/mapper/secret"), (0, 32 * MIB));
    let map = site.map("/dev/mapper/secret");
    assert!(map.contains("ciphertext"), "{map}");
    site.guest.run("dmsetup remove secret");
    let (direct, by_host) = site.back_up("/dev/ubdd");
    assert_eq!((direct, by_host), (128 * MIB, 0));
}

/// A mirror one of whose legs took an error holds other bytes there. (One of the older kind would hold the write until dmeventd comes.)
fn a_leg_that_failed(site: &Site) {
    site.guest.run(
        "sectors=$(blockdev --getsz /dev/mapper/vg-raid_rimage_1)
         dmsetup load vg-raid_rimage_1 --table \"0 $sectors error\"
         dmsetup suspend --noflush --nolockfs vg-raid_rimage_1
         dmsetup resume vg-raid_rimage_1
         timeout 20 dd if=/dev/urandom of=/dev/mapper/vg-raid bs=1M count=1 seek=3 oflag=direct status=none
         dmsetup status vg-raid",
    );
    let map = site.map("/dev/mapper/vg-raid");
    assert!(map.contains("not all of its legs are alive"), "{map}");
    eprintln!("right: a leg that failed");
}

/// Two ways to one LUN, of which either may be the one that is up; and a map that was set up for another disk.
fn several_paths(rig: &Rig, site: &mut Site) {
    let lun = rig.disk("lun", 64 * MIB);
    let guest = &site.guest;
    // Two portals of what calls itself one LUN.
    let targets = [3260, 3261].map(|port| Target::serve(rig, &lun, port));
    let [first, second] = targets.each_ref().map(|target| target.log_in(guest, "host"));
    assert_ne!(first, second);
    let name = first.trim_start_matches("/dev/");
    let wwid = guest.run(&format!("cat /sys/block/{name}/device/wwid"));
    let naa = wwid.trim().strip_prefix("naa.").unwrap().to_owned();
    guest.run(&format!(
        "dmsetup create mpatha --uuid mpath-3{naa} --table \
         \"0 131072 multipath 0 0 2 1 round-robin 0 1 1 {first} 1000 round-robin 0 1 1 {second} 1000\"
         dmsetup create volume --table '0 65536 linear /dev/mapper/mpatha 2048'
         dd if=/dev/urandom of=/dev/mapper/volume bs=1M oflag=direct status=none || true"
    ));
    site.luns.push((format!("naa:{naa}"), lun));
    assert_eq!(site.back_up("/dev/mapper/volume"), (32 * MIB, 0));
    site.guest.run("dmsetup message mpatha 0 disable_group 1");
    assert_eq!(site.back_up("/dev/mapper/volume"), (32 * MIB, 0));
    site.guest.run(&format!(
        "dmsetup remove volume
         dmsetup remove mpatha
         dmsetup create mpathb --uuid mpath-35000000000000001 --table \
         \"0 131072 multipath 0 0 1 1 round-robin 0 2 1 {first} 1000 {second} 1000\""
    ));
    let map = site.map("/dev/mapper/mpathb");
    assert!(map.contains("it was set up for mpath-35000000000000001"), "{map}");
    site.guest.run("dmsetup remove mpathb");
}
