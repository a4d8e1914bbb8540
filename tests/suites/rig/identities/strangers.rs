//! Disks that have the names of the host's, and are others.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use tests::disk::run;
use tests::guest::VirtualDisk;
use tests::site::text;

use super::super::{MIB, sha256_in};
use super::proxy::{assert_refused, backup_by, findings, found};
use super::site::{BELIEVE_NVME, LUN_SIZE, Site, Volume, disks_of, lun, map};

/// Copies of the host's disks.
pub(super) struct Clones {
    scsi_4096: PathBuf,
    nvme_4096: PathBuf,
    virtio_4096: PathBuf,
    /// The first half of one.
    half_of_nvme_512: PathBuf,
    /// All of one, and more behind it.
    more_of_scsi_512: PathBuf,
}

impl Clones {
    pub(super) fn of(site: &Site) -> Self {
        site.host.run("sync");
        let clone = |name: &str, copy: &str, size: u64| {
            let path = site.rig.path(copy);
            let original = site.disk(name).file;
            run("cp", &["--sparse=always", text(original), text(&path)]);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(size)
                .unwrap();
            path
        };
        Self {
            scsi_4096: clone("scsi-4096", "clone1", LUN_SIZE),
            nvme_4096: clone("nvme-4096", "clone2", LUN_SIZE),
            virtio_4096: clone("virtio-4096", "clone3", LUN_SIZE),
            half_of_nvme_512: clone("nvme-512", "clone4", LUN_SIZE / 2),
            more_of_scsi_512: clone("scsi-512", "clone5", LUN_SIZE + MIB),
        }
    }
}

/// A proxy with disks that have the names of the host's, and are others.
pub(super) fn strangers(site: &Site, clones: &Clones, volumes: &[Volume], uris: &HashMap<&str, String>) {
    let like = |name, file| VirtualDisk {
        file,
        ..site.disk(name)
    };
    let disks = [
        like("scsi-4096", &clones.scsi_4096),
        site.disk("scsi-512"),
        like("scsi-512", &clones.more_of_scsi_512),
        like("nvme-4096", &clones.nvme_4096),
        like("nvme-512", &clones.half_of_nvme_512),
        like("virtio-4096", &clones.virtio_4096),
        site.disk("virtio-4096"),
        site.disk("virtio-512"),
        // Its own file, in other blocks.
        VirtualDisk {
            block_size: 4096,
            ..site.disk("virtio-512")
        },
    ];
    let proxy = site.rig.boot_qemu("strangers", &disks);
    proxy.run(BELIEVE_NVME);
    let nodes = disks_of(&proxy, disks.len());
    let [nvme_4096, nvme_512] = [nodes[0].as_str(), nodes[1].as_str()];
    let refuse = |volume: &str, luns: &[&str], kind: &str, exit_code: i32, words: &[&str]| {
        assert_refused(&proxy, &uris[volume], luns, kind, exit_code, words);
    };
    // Clones that have the bytes of the volume as well, but for the tag's.
    refuse(
        "scsi-4096",
        &["/dev/sda"],
        "wrong-lun",
        1,
        &["its tag is not there"],
    );
    refuse(
        "nvme-4096",
        &[nvme_4096],
        "wrong-lun",
        1,
        &["its tag is not there"],
    );
    refuse("nvme-512", &[nvme_512], "wrong-lun", 1, &["its tag is not there"]);
    refuse(
        "virtio-4096",
        &["/dev/vda"],
        "wrong-lun",
        1,
        &["its tag is not there"],
    );
    // Under one name, they might be two paths to one disk; and each path is proven.
    refuse(
        "virtio-4096",
        &["/dev/vdb", "/dev/vda"],
        "wrong-lun",
        1,
        &["/dev/vda", "its tag is not there"],
    );
    // The disk itself is not worse for the clone beside it.
    let (_, image) = backup_by(&proxy, &uris["virtio-4096"], &["/dev/vdb"]).unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume.name == "virtio-4096")
        .unwrap();
    assert_eq!(image, sha256_in(&site.host, &volume.frozen));
    // One name and two geometries: neither has it.
    for (node, twin) in [("/dev/sdb", "/dev/sdc"), ("/dev/vdc", "/dev/vdd")] {
        for node in [node, twin] {
            refuse(
                "lv",
                &[node],
                "usage",
                2,
                &["two disks under one name", node, twin, "--lun ID=PATH"],
            );
        }
    }
    // As a host: of two disks under one name in one volume, a proxy would read one for the other.
    proxy.run(
        "printf '0 2048 linear /dev/vda 0\\n2048 2048 linear /dev/vdb 0\\n' | dmsetup create --readonly joined",
    );
    let joined = map(&proxy, "/dev/mapper/joined");
    let extents = joined["extents"].as_array().unwrap();
    assert_eq!(
        (extents.len(), &extents[0]["direct"], &extents[1]["direct"]),
        (2, &true.into(), &false.into()),
        "{joined}"
    );
    let reason = extents[1]["opaque"].as_str().unwrap();
    assert!(reason.contains("the same identity as /dev/vda"), "{reason}");
    proxy.run("dmsetup remove joined");
    // An operator may say which is which, and samples tell where that is wrong: the logical volume has no tag.
    let claimed = format!("{}=/dev/sdc", lun("scsi-512").identity);
    refuse("lv", &[&claimed], "wrong-lun", 1, &["a sample differs"]);

    for (node, twin) in [
        ("/dev/sdb", "/dev/sdc"),
        ("/dev/vda", "/dev/vdb"),
        ("/dev/vdc", "/dev/vdd"),
    ] {
        assert_eq!(findings(&proxy, node), found("twin", node));
        assert_eq!(findings(&proxy, twin), found("twin", twin));
    }
    for node in ["/dev/sda", nvme_4096, nvme_512] {
        assert_eq!(findings(&proxy, node), []);
    }
}
