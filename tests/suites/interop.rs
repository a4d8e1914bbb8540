//! Foreign clients against our server: to them a frozen export is an ordinary read-only one, and an origin a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::disk::{Scratch, run, scratch};
use tests::program::Host;
use tests::{digest, needs};

const MIB: u64 = 1 << 20;

/// A server with a frozen file of data, holes and an odd end, and an origin.
struct Served {
    host: Host,
    volume: PathBuf,
    directory: Scratch,
}

impl Served {
    fn new() -> Self {
        let directory = scratch();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        fs::File::create(path("live.img"))
            .unwrap()
            .set_len(16 * MIB)
            .unwrap();
        let origin = format!("live={}", path("live.img"));
        let copy_area = format!("{},size=8M", path("copy.img"));
        let socket = path("nbd.sock");
        Self::with(
            directory,
            &[
                "--origin",
                &origin,
                "--copy-area",
                &copy_area,
                "--socket",
                &socket,
            ],
        )
    }

    fn with(directory: Scratch, arguments: &[&str]) -> Self {
        let volume = directory.path().join("volume.img");
        let mut bytes = vec![0; usize::try_from(8 * MIB).unwrap() + 1000];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // Data in the first, third and last MiB; zeroes elsewhere, which become holes.
            if matches!(index >> 20, 0 | 2 | 8) {
                *byte = u8::try_from(index * 7 % 251).unwrap() | 1;
            }
        }
        fs::write(&volume, &bytes).unwrap();
        run("fallocate", &["--dig-holes", volume.to_str().unwrap()]);
        let frozen = format!("vol={}", volume.display());
        let control = directory.path().join("control.sock");
        let host = Host::serve(&[arguments, &[&frozen, "--control", control.to_str().unwrap()]].concat());
        Self {
            host,
            volume,
            directory,
        }
    }

    fn uri(&self) -> &str {
        self.host.uri("vol")
    }

    fn live(&self) -> &str {
        self.host.uri("live")
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn frozen(&self) -> blake3::Hash {
        digest::of_file(&self.volume)
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

/// (start, length, kind) of `nbdinfo --map --json`.
fn map_of(uri: &str) -> Vec<(u64, u64, u64)> {
    let map = json(&run("nbdinfo", &["--json", "--map", uri]));
    let field = |entry: &serde_json::Value, name: &str| entry[name].as_u64().unwrap();
    map.as_array()
        .unwrap()
        .iter()
        .map(|e| (field(e, "offset"), field(e, "length"), field(e, "type")))
        .collect()
}

#[test]
fn nbdinfo_shows_exports_flags_and_map() {
    needs!("nbdinfo", "fallocate");
    let served = Served::new();
    let list = run("nbdinfo", &["--list", served.uri()]);
    assert!(
        list.contains("export=\"vol\"") && list.contains("export=\"live\""),
        "{list}"
    );

    let info = json(&run("nbdinfo", &["--json", served.uri()]));
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 8 * MIB + 1000);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["can_df"], true);
    assert!(
        export["description"]
            .as_str()
            .unwrap()
            .starts_with("frozen image: method="),
        "{export}"
    );
    assert_eq!(
        run("nbdinfo", &["--size", served.uri()]).trim(),
        (8 * MIB + 1000).to_string()
    );

    // data 0, hole,zero 3
    let expected = [
        (0, MIB, 0),
        (MIB, MIB, 3),
        (2 * MIB, MIB, 0),
        (3 * MIB, 5 * MIB, 3),
        (8 * MIB, 1000, 0),
    ];
    assert_eq!(map_of(served.uri()), expected);
    let totals = run("nbdinfo", &["--map", "--totals", served.uri()]);
    assert!(totals.contains("hole,zero"), "{totals}");
}

#[test]
fn nbdcopy_reads_and_writes() {
    needs!("nbdcopy", "fallocate");
    let served = Served::new();
    let copy = served.path("copy");
    run("nbdcopy", &[served.uri(), &copy]);
    assert_eq!(digest::of_file(Path::new(&copy)), served.frozen());
    run(
        "nbdcopy",
        &[
            "--synchronous",
            "--connections=1",
            "--requests=1",
            served.uri(),
            &served.path("copy2"),
        ],
    );
    assert_eq!(digest::of_file(Path::new(&served.path("copy2"))), served.frozen());
    run("nbdcopy", &[served.uri(), "null:"]);

    let full = served.path("full");
    fs::write(&full, vec![0x5a; usize::try_from(16 * MIB).unwrap()]).unwrap();
    run("nbdcopy", &["--flush", &full, served.live()]);
    run("nbdcopy", &[served.live(), &served.path("back")]);
    assert_eq!(
        digest::of_file(Path::new(&served.path("back"))),
        digest::of_file(Path::new(&full))
    );
}

#[test]
fn qemu_img_reads_maps_and_compares() {
    needs!("qemu-img", "fallocate");
    let served = Served::new();
    let volume = served.volume.to_str().unwrap();
    let info = json(&run(
        "qemu-img",
        &["info", "--output=json", "-f", "raw", served.uri()],
    ));
    // qemu rounds sizes to sectors.
    assert_eq!(
        info["virtual-size"].as_u64().unwrap().div_ceil(512),
        (8 * MIB + 1000_u64).div_ceil(512)
    );
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", served.uri(), volume],
    );
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "raw",
            served.uri(),
            &served.path("converted"),
        ],
    );
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &served.path("converted"),
            volume,
        ],
    );
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            served.uri(),
            &served.path("converted.qcow2"),
        ],
    );
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            &served.path("converted.qcow2"),
            volume,
        ],
    );

    let map = json(&run(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", served.uri()],
    ));
    let data = |e: &&serde_json::Value| e["data"] == true;
    let bytes: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .filter(data)
        .map(|e| e["length"].as_u64().unwrap())
        .sum();
    assert_eq!(bytes.div_ceil(512), (2 * MIB + 1000).div_ceil(512), "{map}");
}

/// qemu speaks extended headers, so it sees our own contexts: bit 0 of the status, as it shows it.
#[test]
fn qemu_img_selects_our_contexts() {
    needs!("qemu-img", "fallocate");
    let served = Served::new();
    let socket = served.path("nbd.sock");
    let options = format!(
        "driver=nbd,server.type=unix,server.path={socket},export=vol,x-dirty-bitmap=x-volmap:generation"
    );
    let map = json(&run(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &options],
    ));
    let covered: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["length"].as_u64().unwrap())
        .sum();
    assert!(covered >= 8 * MIB + 1000, "{map}");
}

#[test]
fn qemu_io_reads_writes_and_discards() {
    needs!("qemu-io", "fallocate");
    let served = Served::new();
    run(
        "qemu-io",
        &[
            "-r",
            "-f",
            "raw",
            "-c",
            "read -P 0 1M 1M",
            "-c",
            "read 8M 512",
            served.uri(),
        ],
    );
    let script = [
        "-f",
        "raw",
        "-c",
        "write -P 0x11 64k 128k",
        "-c",
        "write -f -P 0x22 128k 4k",
        "-c",
        "discard 64k 32k",
        "-c",
        "write -z 100k 8k",
        "-c",
        "flush",
        "-c",
        "read -P 0x22 128k 4k",
        "-c",
        "read -P 0 64k 32k",
        "-c",
        "read -P 0 100k 8k",
        "-c",
        "read -P 0x11 112k 16k",
    ];
    let output = run("qemu-io", &[&script[..], &[served.live()]].concat());
    assert!(!output.contains("verification failed"), "{output}");
    let refused = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 4k", served.uri()])
        .output()
        .unwrap();
    assert!(!refused.status.success(), "a frozen export cannot be written");
}

#[test]
fn fio_verifies_what_it_writes_to_an_origin() {
    needs!("fio", "fallocate");
    let served = Served::new();
    let uri = format!("--uri={}", served.live());
    let job = [
        "--name=v",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--size=8M",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_state_save=0",
    ];
    let output = run("fio", &[&job[..], &[&uri]].concat());
    assert!(output.contains("err= 0"), "{output}");
    let uri = format!("--uri={}", served.uri());
    run(
        "fio",
        &[
            "--name=r",
            "--ioengine=nbd",
            "--rw=randread",
            "--bs=4k",
            "--size=8M",
            "--iodepth=32",
            &uri,
        ],
    );
}

#[test]
fn tcp_clients_list_and_read() {
    needs!("nbd-client", "nbdcopy", "fallocate");
    let served = Served::with(scratch(), &["--listen", "127.0.0.1:0"]);
    let port = served
        .uri()
        .rsplit_once(':')
        .unwrap()
        .1
        .split('/')
        .next()
        .unwrap();
    let list = run("nbd-client", &["-l", "127.0.0.1", port]);
    assert!(list.lines().any(|line| line.starts_with("vol")), "{list}");
    assert!(
        !list.contains("live"),
        "writable exports are not offered over TCP: {list}"
    );
    run("nbdcopy", &[served.uri(), &served.path("copy")]);
    assert_eq!(digest::of_file(Path::new(&served.path("copy"))), served.frozen());
}
