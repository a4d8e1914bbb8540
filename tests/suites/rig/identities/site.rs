//! The host, its disks, and the volumes on them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::guest::{Bus, Guest, Process, Rig, VirtualDisk};

use super::super::MIB;

/// A disk of the host.
pub(super) struct Lun {
    pub(super) name: &'static str,
    pub(super) bus: Bus,
    pub(super) block_size: u32,
    /// What QEMU has it say of itself.
    pub(super) names: &'static str,
    /// What the programs are to make of it.
    pub(super) identity: &'static str,
}

impl Lun {
    pub(super) fn disk<'a>(&'a self, file: &'a Path) -> VirtualDisk<'a> {
        disk(file, self.bus, self.block_size, self.names)
    }
}

pub(super) fn disk<'a>(file: &'a Path, bus: Bus, block_size: u32, names: &'a str) -> VirtualDisk<'a> {
    VirtualDisk {
        file,
        bus,
        block_size,
        names,
    }
}

pub(super) const LUNS: [Lun; 7] = [
    Lun {
        name: "scsi-512",
        bus: Bus::Scsi,
        block_size: 512,
        names: "wwn=0x5000c500a1b2c301,serial=SCSI1",
        identity: "naa:5000c500a1b2c301",
    },
    Lun {
        name: "scsi-4096",
        bus: Bus::Scsi,
        block_size: 4096,
        names: "wwn=0x5000c500a1b2c302",
        identity: "naa:5000c500a1b2c302",
    },
    Lun {
        name: "nvme-512",
        bus: Bus::Nvme,
        block_size: 512,
        names: "nguid=a1b2c3d4-0000-4000-8000-00000000cafe,eui64=0x0025385b71b0a1c3",
        identity: "eui:a1b2c3d400004000800000000000cafe",
    },
    Lun {
        name: "nvme-4096",
        bus: Bus::Nvme,
        block_size: 4096,
        names: "eui64=0x0025385b71b0a1c4",
        identity: "eui:0025385b71b0a1c4",
    },
    Lun {
        name: "virtio-512",
        bus: Bus::Virtio,
        block_size: 512,
        names: "serial=VBLK-512",
        identity: "serial:VBLK-512",
    },
    Lun {
        name: "virtio-4096",
        bus: Bus::Virtio,
        block_size: 4096,
        names: "serial=VBLK-4096",
        identity: "serial:VBLK-4096",
    },
    Lun {
        name: "nvme-uuid",
        bus: Bus::Nvme,
        block_size: 512,
        names: "uuid=c0ffee00-1234-4bcd-8ef0-112233445566,nguid=a1b2c3d4-0000-4000-8000-00000000beef",
        identity: "uuid:c0ffee00-1234-4bcd-8ef0-112233445566",
    },
];

/// Room for XFS.
pub(super) const LUN_SIZE: u64 = 320 * MIB;
pub(super) const VOLUME: u64 = 8 * MIB;

/// Linux knows QEMU's NVMe controllers for names that are not unique, and believes none of theirs. Any other controller it believes; these are
/// bound once more as any other, in the order in which they are plugged in.
pub(super) const BELIEVE_NVME: &str = "
    modprobe nvme
    cd /sys/bus/pci/drivers/nvme
    echo 1b36 0010 ffffffff ffffffff 010802 ffffff 0 >new_id
    controllers=$(ls -d 0000:*)
    for controller in $controllers; do echo $controller >unbind; done
    for controller in $controllers; do echo $controller >bind; done";

pub(super) fn lun(name: &str) -> &'static Lun {
    LUNS.iter().find(|lun| lun.name == name).unwrap()
}

/// The host, and the files that its disks are.
pub(super) struct Site {
    pub(super) rig: Rig,
    pub(super) files: Vec<PathBuf>,
    pub(super) host: Guest,
}

impl Site {
    pub(super) fn boot() -> Self {
        let rig = Rig::new();
        let files: Vec<PathBuf> = LUNS.iter().map(|lun| rig.disk(lun.name, LUN_SIZE)).collect();
        let disks: Vec<_> = LUNS
            .iter()
            .zip(&files)
            .map(|(lun, file)| lun.disk(file))
            .collect();
        let host = rig.boot_qemu("host", &disks);
        Self { rig, files, host }
    }

    pub(super) fn disk(&self, name: &str) -> VirtualDisk<'_> {
        let number = LUNS.iter().position(|lun| lun.name == name).unwrap();
        LUNS[number].disk(&self.files[number])
    }
}

/// Waits for disks of a number, and gives back their nodes with the names that the kernel has for each.
pub(super) fn disks_of(guest: &Guest, count: usize) -> Vec<String> {
    let nodes = guest.run(&format!(
        "for i in $(seq 200); do
             nodes=$(ls /dev | grep -E '^(sd[a-z]|vd[a-z]|nvme[0-9]+n[0-9]+)$' || true)
             [ $(echo $nodes | wc -w) -lt {count} ] || break
             sleep 0.1
         done
         printf '/dev/%s\\n' $nodes"
    ));
    let nodes: Vec<String> = nodes.lines().map(str::to_owned).collect();
    assert_eq!(nodes.len(), count, "{nodes:?}");
    nodes
}

/// What the host says of a volume.
pub(super) fn map(guest: &Guest, volume: &str) -> Value {
    serde_json::from_str(&guest.run(&format!("nbd-export map --json {volume} 2>/dev/null"))).unwrap()
}

/// The disks below a volume, with the nodes that they have here.
pub(super) fn disks_below(map: &Value) -> Vec<(&str, &str)> {
    let stores = map["stores"].as_array().unwrap().iter();
    let mut disks: Vec<_> = stores
        .filter(|store| store["kind"] == "disk")
        .map(|store| {
            (
                store["identity"].as_str().unwrap(),
                store["label"].as_str().unwrap(),
            )
        })
        .collect();
    disks.sort_unstable();
    disks
}

/// A volume of the host.
pub(super) struct Volume {
    pub(super) name: &'static str,
    pub(super) path: String,
    pub(super) disks: Vec<&'static str>,
    /// A command that gives what the frozen image holds.
    pub(super) frozen: String,
}

/// A file system with a file on each of four disks, and a logical volume striped over two more.
pub(super) fn make_volumes(host: &Guest, nodes: &HashMap<&str, String>) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for name in ["scsi-4096", "nvme-512", "nvme-4096", "virtio-4096"] {
        let node = &nodes[lun(name).identity];
        host.run(&format!(
            "mkfs.xfs -q {node}; mkdir /{name}; mount {node} /{name}
             dd if=/dev/urandom of=/{name}/vm bs=1M count={} status=none; sync",
            VOLUME / MIB
        ));
        volumes.push(Volume {
            name,
            path: format!("/{name}/vm"),
            disks: vec![lun(name).identity],
            frozen: format!("cat /{name}/.vm.*.frozen"),
        });
    }
    let (one, other) = (lun("scsi-512").identity, lun("virtio-512").identity);
    host.run(&format!(
        "pvcreate -qq -y {0} {1}; vgcreate -qq -s 1M vg {0} {1}; lvcreate -qq -y -Wn -i 2 -I 64k -L {VOLUME}b -n lv vg
         dd if=/dev/urandom of=/dev/vg/lv bs=1M oflag=direct status=none count={2}",
        nodes[one],
        nodes[other],
        VOLUME / MIB
    ));
    volumes.push(Volume {
        name: "lv",
        path: "/dev/vg/lv".into(),
        disks: vec![one, other],
        frozen: "dd if=$(echo $(lvs --noheadings -o lv_path @volmap)) iflag=direct bs=1M status=none".into(),
    });
    volumes
}

/// Freezes and publishes them. Gives the URI of each.
pub(super) fn serve(host: &Guest, volumes: &[Volume]) -> (Process, HashMap<&'static str, String>) {
    let mut arguments = format!("--origin-listen {}:10809 --insecure-plaintext", host.address);
    for Volume { name, path, .. } in volumes {
        arguments += &format!(" {name}={path}");
        if path.ends_with("/vm") {
            arguments += &format!(" --tag {name}=/{name}/tag");
        }
    }
    let (agent, uris) = host.serve(&arguments);
    let uri_of = |volume: &Volume| {
        let end = format!("/{}", volume.name);
        let uri = uris.iter().find(|uri| uri.ends_with(&end));
        (volume.name, uri.unwrap_or_else(|| panic!("{uris:?}")).clone())
    };
    (agent, volumes.iter().map(uri_of).collect())
}

/// Nodes of the disks of a guest, by their identities.
pub(super) fn nodes_by_identity(guest: &Guest, count: usize) -> HashMap<&'static str, String> {
    let mut nodes = HashMap::new();
    for node in disks_of(guest, count) {
        let map = map(guest, &node);
        let [(identity, label)] = disks_below(&map)[..] else {
            panic!("{map}");
        };
        assert_eq!(label, node);
        if let Some(lun) = LUNS.iter().find(|lun| lun.identity == identity) {
            assert!(nodes.insert(lun.identity, node).is_none(), "{identity} twice");
        } else {
            let reason = map["extents"][0]["opaque"].as_str().unwrap_or_default();
            assert!(reason.contains(&format!("--identity {node}=NAME")), "{map}");
        }
    }
    nodes
}
