//! Who a disk is, on a real kernel's virtio-scsi, NVMe and virtio-blk: two machines in QEMU have the same disks under other device names, and
//! nothing but the disks' own names tells which is which.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::disk::run;
use tests::guest::{Bus, Guest, Process, Rig, VirtualDisk};
use tests::needs_qemu_guests;
use tests::site::text;

use super::{MIB, sha256_in, sha256_of_image};

/// A disk of the host.
struct Lun {
    name: &'static str,
    bus: Bus,
    block_size: u32,
    /// What QEMU has it say of itself.
    names: &'static str,
    /// What the programs are to make of it.
    identity: &'static str,
}

impl Lun {
    fn disk<'a>(&'a self, file: &'a Path) -> VirtualDisk<'a> {
        disk(file, self.bus, self.block_size, self.names)
    }
}

fn disk<'a>(file: &'a Path, bus: Bus, block_size: u32, names: &'a str) -> VirtualDisk<'a> {
    VirtualDisk {
        file,
        bus,
        block_size,
        names,
    }
}

const LUNS: [Lun; 7] = [
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
const LUN_SIZE: u64 = 320 * MIB;
const VOLUME: u64 = 8 * MIB;

/// Linux knows QEMU's NVMe controllers for names that are not unique, and believes none of theirs. Any other controller it believes; these are
/// bound once more as any other, in the order in which they are plugged in.
const BELIEVE_NVME: &str = "
    modprobe nvme
    cd /sys/bus/pci/drivers/nvme
    echo 1b36 0010 ffffffff ffffffff 010802 ffffff 0 >new_id
    controllers=$(ls -d 0000:*)
    for controller in $controllers; do echo $controller >unbind; done
    for controller in $controllers; do echo $controller >bind; done";

fn lun(name: &str) -> &'static Lun {
    LUNS.iter().find(|lun| lun.name == name).unwrap()
}

/// The host, and the files that its disks are.
struct Site {
    rig: Rig,
    files: Vec<PathBuf>,
    host: Guest,
}

impl Site {
    fn boot() -> Self {
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

    fn disk(&self, name: &str) -> VirtualDisk<'_> {
        let number = LUNS.iter().position(|lun| lun.name == name).unwrap();
        LUNS[number].disk(&self.files[number])
    }
}

/// Waits for disks of a number, and gives back their nodes with the names that the kernel has for each.
fn disks_of(guest: &Guest, count: usize) -> Vec<String> {
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
fn map(guest: &Guest, volume: &str) -> Value {
    serde_json::from_str(&guest.run(&format!("nbd-export map --json {volume} 2>/dev/null"))).unwrap()
}

/// The disks below a volume, with the nodes that they have here.
fn disks_below(map: &Value) -> Vec<(&str, &str)> {
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
struct Volume {
    name: &'static str,
    path: String,
    disks: Vec<&'static str>,
    /// A command that gives what the frozen image holds.
    frozen: String,
}

/// A file system with a file on each of four disks, and a logical volume striped over two more.
fn make_volumes(host: &Guest, nodes: &HashMap<&str, String>) -> Vec<Volume> {
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
fn serve(host: &Guest, volumes: &[Volume]) -> (Process, HashMap<&'static str, String>) {
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

/// A backup by a proxy that has to read all of it directly. The report and the digest of what it read; or the error.
fn backup_by(proxy: &Guest, uri: &str, luns: &[&str]) -> Result<(Value, String), Value> {
    let luns: String = luns.iter().map(|lun| format!(" --lun {lun}")).collect();
    let output = proxy.try_run(&format!(
        "rm -f /run/share/image*
         proxy-client --error-format json backup {uri}{luns} --require-direct 100 --output /run/share/image --json 2>&1"
    ));
    let line = output.stdout.lines().rfind(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{output:?}"));
    let value: Value = serde_json::from_str(line).unwrap();
    let image = proxy.share.join("image");
    if output.status == 0 {
        return Ok((value, sha256_of_image(&image)));
    }
    assert_eq!(value["exit_code"], output.status, "{output:?}");
    assert!(!image.exists(), "there is an image in spite of {value}");
    Err(value)
}

/// A backup that is refused, with this kind and exit code, and words in the message.
fn assert_refused(proxy: &Guest, uri: &str, luns: &[&str], kind: &str, exit_code: i32, words: &[&str]) {
    let refused = backup_by(proxy, uri, luns).unwrap_err();
    assert_eq!(
        (&refused["kind"], &refused["exit_code"]),
        (&kind.into(), &exit_code.into()),
        "{luns:?}: {refused}"
    );
    let message = refused["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "{luns:?}: no {word:?} in {message:?}");
    }
    eprintln!("right: {luns:?} is refused: {message}");
}

/// Nodes of the disks of a guest, by their identities.
fn nodes_by_identity(guest: &Guest, count: usize) -> HashMap<&'static str, String> {
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

/// What the doctor finds on a disk: the severities and kinds, with the devices that they are about.
fn findings(guest: &Guest, node: &str) -> Vec<(String, String)> {
    let output = guest.try_run(&format!("proxy-client doctor --json --lun {node}"));
    let examination: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"));
    let findings = examination["luns"][0]["findings"].as_array().unwrap().iter();
    let mut found: Vec<_> = findings
        .filter(|finding| finding["severity"] != "note")
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap().to_owned();
            (text("kind"), text("device"))
        })
        .collect();
    found.sort_unstable();
    let is_danger = examination["luns"][0]["dangerous"] == true;
    assert_eq!(output.status, i32::from(is_danger), "{examination}");
    found
}

fn found(kind: &str, device: &str) -> Vec<(String, String)> {
    vec![(kind.to_owned(), device.to_owned())]
}

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

/// Copies of the host's disks.
struct Clones {
    scsi_4096: PathBuf,
    nvme_4096: PathBuf,
    virtio_4096: PathBuf,
    /// The first half of one.
    half_of_nvme_512: PathBuf,
    /// All of one, and more behind it.
    more_of_scsi_512: PathBuf,
}

impl Clones {
    fn of(site: &Site) -> Self {
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
fn strangers(site: &Site, clones: &Clones, volumes: &[Volume], uris: &HashMap<&str, String>) {
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
