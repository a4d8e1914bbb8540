//! Who a disk is, on a real kernel's virtio-scsi, NVMe and virtio-blk: two machines in QEMU have the same disks under other device names, and
//! nothing but the disks' own names tells which is which.

mod proxy;
mod site;
mod strangers;

use std::collections::HashMap;

use tests::guest::{Bus, Guest};
use tests::needs_qemu_guests;

use self::proxy::{assert_refused, backup_by, findings, found};
use self::site::{
    BELIEVE_NVME, LUN_SIZE, LUNS, Site, VOLUME, Volume, disk, disks_below, lun, make_volumes, map,
    nodes_by_identity, serve,
};
use self::strangers::{Clones, strangers};
use super::{MIB, sha256_in};

#[test]
fn disks_are_known_by_their_own_names_whatever_their_nodes_are() {
    needs_qemu_guests!("mkfs.xfs", "lvm", "zstd");
    let site = Site::boot();
    let host = &site.host;
    // As it comes, Linux believes none of the names of QEMU's NVMe namespaces.
    host.run("modprobe nvme");
    assert_eq!(nodes_by_identity(host, LUNS.len()).len(), 4);
    host.run("modprobe -r nvme");
    host.run(BELIEVE_NVME);
    let nodes = nodes_by_identity(host, LUNS.len());
    assert_eq!(nodes.len(), LUNS.len(), "{nodes:?}");
    let volumes = make_volumes(host, &nodes);
    for volume in &volumes {
        let map = map(host, &volume.path);
        let expected: Vec<_> = volume
            .disks
            .iter()
            .map(|disk| (*disk, nodes[disk].as_str()))
            .collect();
        assert_eq!(disks_below(&map), expected, "{map}");
    }
    let clones = Clones::of(&site);
    // What samples of the logical volume's clones show, for it has no tag.
    host.run(&format!(
        "dd if=/dev/urandom of=/dev/vg/lv bs=1M oflag=direct status=none count={}",
        VOLUME / MIB
    ));

    let (agent, uris) = serve(host, &volumes);
    for volume in &volumes {
        host.run(&format!(
            "dd if=/dev/urandom of={} bs=64k seek=3 count=9 conv=notrunc oflag=direct status=none",
            volume.path
        ));
    }
    let proxy = the_same_disks(&site, &nodes, &volumes, &uris);
    strangers(&site, &clones, &volumes, &uris);
    host.run(&format!("kill {}", agent.pid));
    assert_eq!(agent.wait().status, 0);
    what_the_doctor_says(&proxy);
}

/// A proxy that has the host's disks, and others, under other nodes than the host.
fn the_same_disks(
    site: &Site,
    nodes_of_host: &HashMap<&str, String>,
    volumes: &[Volume],
    uris: &HashMap<&str, String>,
) -> Guest {
    let blanks = [
        (Bus::Scsi, site.rig.disk("blank-scsi", LUN_SIZE)),
        (Bus::Virtio, site.rig.disk("blank-virtio", LUN_SIZE)),
    ];
    // Nameless disks come first, then those of the host, the last of them before the others.
    let mut disks: Vec<_> = blanks
        .iter()
        .map(|(bus, file)| disk(file, *bus, 512, ""))
        .collect();
    disks.extend(LUNS[3..].iter().chain(&LUNS[..3]).map(|lun| site.disk(lun.name)));
    let proxy = site.rig.boot_qemu("proxy", &disks);
    proxy.run(BELIEVE_NVME);
    let nodes = nodes_by_identity(&proxy, disks.len());
    assert_eq!(nodes.len(), LUNS.len(), "{nodes:?}");
    for lun in &LUNS {
        let node = &nodes[lun.identity];
        assert_ne!(*node, nodes_of_host[lun.identity], "{}", lun.name);
        assert_eq!(findings(&proxy, node), [], "{}", lun.name);
    }
    let all: Vec<&str> = nodes.values().map(String::as_str).collect();
    for volume in volumes {
        let (report, image) = backup_by(&proxy, &uris[volume.name], &all).unwrap();
        assert_eq!(report["bytes_direct"], VOLUME, "{report}");
        assert_eq!(image, sha256_in(&site.host, &volume.frozen), "{report}");
        assert_ne!(
            image,
            sha256_in(&site.host, &format!("cat {}", volume.path)),
            "the volume was written to"
        );
        let mut read = Vec::new();
        for lun in report["identity"].as_array().unwrap() {
            let (identity, path) = (lun["lun"].as_str().unwrap(), lun["path"].as_str().unwrap());
            assert_eq!(nodes[identity], path, "{report}");
            if lun["bytes"] != 0 {
                read.push(identity);
            }
            let proof = match &volume.disks[..] {
                [sole] if *sole == identity => "tag",
                disks if disks.contains(&identity) => "sampled only",
                _ => "not proven",
            };
            assert_eq!(lun["proof"], proof, "{report}");
        }
        read.sort_unstable();
        assert_eq!(read, volume.disks, "{report}");
        eprintln!("right: {} by {read:?}", volume.name);
    }

    let uri = &uris["scsi-4096"];
    // A disk that does not say who it is; the operator has to, and that is proven, too.
    let nameless = ["/dev/sda", "/dev/vda"];
    for node in nameless {
        let words = ["no identity", "--lun ID=PATH", "--identity"];
        let words = if node == "/dev/sda" { &words[1..] } else { &words };
        assert_refused(&proxy, uri, &[node], "usage", 2, words);
    }
    let identity = lun("scsi-4096").identity;
    let claimed = format!("{identity}=/dev/sda");
    assert_refused(&proxy, uri, &[&claimed], "wrong-lun", 1, &[]);
    // One that says that it is another one than the operator takes it for.
    let claimed = format!("{identity}={}", nodes[lun("scsi-512").identity]);
    let words = ["this disk is naa:5000c500a1b2c301, not naa:5000c500a1b2c302"];
    assert_refused(&proxy, uri, &[&claimed], "wrong-lun", 1, &words);
    proxy
}

fn what_the_doctor_says(proxy: &Guest) {
    let nodes = nodes_by_identity(proxy, LUNS.len() + 2);
    let node = |name: &str| nodes[lun(name).identity].as_str();
    proxy.run("vgchange -qq --activate y vg");
    for name in ["scsi-512", "virtio-512"] {
        assert_eq!(
            findings(proxy, node(name)),
            found("volume-group", "/dev/mapper/vg-lv")
        );
    }
    for name in ["scsi-4096", "nvme-512", "virtio-4096"] {
        assert_eq!(findings(proxy, node(name)), []);
        proxy.run(&format!(
            "mkdir /mnt/{name}; mount -o ro,norecovery {} /mnt/{name}",
            node(name)
        ));
        assert_eq!(findings(proxy, node(name)), found("mounted", node(name)));
    }
    assert_refused(
        proxy,
        "nbd://127.0.0.1:9/x",
        &[node("nvme-512")],
        "lun-in-use",
        1,
        &["umount"],
    );
}
