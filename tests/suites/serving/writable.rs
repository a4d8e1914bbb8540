//! Plain files and devices, written by foreign clients.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tests::disk::{LoopDisk, run};
use tests::program::{Host, fails};
use tests::{needs, needs_loop_devices};

use super::{Ground, MIB, content};

/// A target of 8 MiB that holds something else.
fn served(ground: &Ground) -> (Host, String) {
    let target = ground.path("target");
    fs::write(&target, vec![0x5a; 8 * MIB]).unwrap();
    let host = serve(ground, &target);
    let uri = host.uri("t").to_owned();
    (host, uri)
}

fn serve(ground: &Ground, path: &str) -> Host {
    let writable = format!("t={path}");
    Host::serve(&[
        &ground.control(),
        "--socket",
        &ground.path("s"),
        "--writable",
        &writable,
    ])
}

/// 1 MiB of data, a hole of 3, data of 4 MiB.
fn sparse(ground: &Ground) -> (String, Vec<u8>) {
    let path = ground.path("sparse");
    let mut bytes = [vec![1; MIB], vec![0; 3 * MIB]].concat();
    bytes.extend(content());
    fs::write(&path, &bytes).unwrap();
    run("fallocate", &["--dig-holes", &path]);
    (path, bytes)
}

#[test]
fn copies_into_a_target_that_holds_something_else_come_out_right() {
    needs!("nbdcopy", "qemu-img", "nbdinfo", "fallocate");
    let ground = Ground::new();
    let (source, bytes) = sparse(&ground);
    let copies: [(&str, &[&str]); 3] = [
        ("nbdcopy", &["--flush"]),
        ("nbdcopy", &["--synchronous", "--flush", "--request-size=65536"]),
        ("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw"]),
    ];
    for (program, options) in copies {
        let (host, uri) = served(&ground);
        run(program, &[options, &[&source, &uri]].concat());
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);
        let map = run("nbdinfo", &["--map", "--totals", &uri]);
        assert!(host.terminate().success());
        assert!(
            fs::read(ground.path("target")).unwrap() == bytes,
            "{program} {options:?}"
        );
        let blocks = fs::metadata(ground.path("target")).unwrap().blocks() * 512;
        assert!(
            blocks < 6 << 20,
            "{program} {options:?}: the hole is none on the target: {blocks} bytes\n{map}"
        );
    }
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    needs!("qemu-io", "nbdinfo");
    let ground = Ground::new();
    let (host, uri) = served(&ground);
    for can in ["fua", "flush", "trim", "zero", "fast-zero", "multi-conn", "cache"] {
        run("nbdinfo", &["--can", can, &uri]);
    }
    let script = [
        "write -P 0x11 64k 128k",
        "write -f -P 0x22 1000k 4k",
        "write -z 100k 8k",
        "write -z -u 1M 1M",
        // Fast or not at all.
        "write -z -n -u 3M 64k",
        "write -P 0x33 5000001 77",
        "discard 2M 1M",
        "flush",
        "read -P 0x11 64k 36k",
        "read -P 0 100k 8k",
        "read -P 0x11 108k 84k",
        "read -P 0x22 1000k 4k",
        "read -P 0 1M 1M",
        "read -P 0 3M 64k",
        "read -P 0x33 5000001 77",
        "read -P 0x5a 5000078 1000",
        "read -P 0x5a 4M 64k",
    ];
    let commands = script.iter().flat_map(|command| ["-c", command]);
    let arguments: Vec<&str> = ["-f", "raw"]
        .into_iter()
        .chain(commands)
        .chain([&uri[..]])
        .collect();
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    assert!(host.terminate().success());
    let bytes = fs::read(ground.path("target")).unwrap();
    assert_eq!(bytes.len(), 8 * MIB);
    assert_eq!(&bytes[5_000_000..5_000_003], &[0x5a, 0x33, 0x33]);
}

#[test]
fn fio_verifies_what_it_writes() {
    needs!("fio");
    let ground = Ground::new();
    let (host, uri) = served(&ground);
    let uri = format!("--uri={uri}");
    let job = [
        "--name=v",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--size=8M",
        "--iodepth=32",
        "--fsync=64",
        "--verify=crc32c",
        "--verify_state_save=0",
    ];
    let said = run("fio", &[&job[..], &[&uri]].concat());
    assert!(said.contains("err= 0"), "{said}");
    assert!(host.terminate().success());
}

#[test]
fn a_target_is_for_one_agent_alone() {
    let ground = Ground::new();
    let (host, _) = served(&ground);
    let writable = format!("t={}", ground.path("target"));
    let (socket, control) = (ground.path("s2"), format!("--control={}", ground.path("c2")));
    let error = fails(
        "nbd-export",
        1,
        &["serve", &control, "--socket", &socket, "--writable", &writable],
    );
    assert_eq!(error["kind"], "volume", "{error}");
    let error = fails(
        "nbd-export",
        1,
        &["freeze", "t", "--control", &ground.path("control")],
    );
    assert_eq!(error["kind"], "freeze", "{error}");
    assert!(host.terminate().success());
}

#[test]
fn a_block_device_takes_whatever_a_file_takes() {
    needs_loop_devices!("qemu-io", "nbdcopy", "fallocate");
    let ground = Ground::new();
    let disk = LoopDisk::new(ground.directory.path(), "lun", 8 << 20, 4096);
    let device = disk.device.to_str().unwrap();
    let (source, bytes) = sparse(&ground);
    let host = serve(&ground, device);
    let uri = host.uri("t");
    run("nbdcopy", &["--flush", &source, uri]);
    let script = [
        "read -P 1 0 1M",
        "read -P 0 1M 3M",
        // Ends that are no blocks.
        "write -P 0x44 0 64k",
        "write -z -u 5000 10001",
        "write -z 20001 77",
        "discard 30001 5000",
        "flush",
        "read -P 0x44 0 5000",
        "read -P 0 5000 10001",
        "read -P 0x44 15001 5000",
        "read -P 0 20001 77",
        "read -P 0x44 20078 9923",
        "read -P 0x44 35001 1000",
    ];
    let commands = script.iter().flat_map(|command| ["-c", command]);
    let arguments: Vec<&str> = ["-f", "raw"].into_iter().chain(commands).chain([uri]).collect();
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    assert!(host.terminate().success());
    assert!(fs::read(&disk.lun).unwrap()[MIB..] == bytes[MIB..]);
}

/// A loop device has a page cache of its own, so that what is in the file below it has been flushed. CAN_MULTI_CONN promises that
/// it does not matter on which connection.
#[test]
fn what_is_flushed_or_forced_on_any_connection_is_on_the_device() {
    needs_loop_devices!("nbdsh");
    let ground = Ground::new();
    let disk = LoopDisk::new(ground.directory.path(), "lun", 8 << 20, 512);
    let host = serve(&ground, disk.device.to_str().unwrap());
    let told = ground.nbdsh(&format!(
        "one, other, third = nbd.NBD(), nbd.NBD(), nbd.NBD()\n\
         for h in (one, other, third):\n    h.connect_uri('{uri}')\n    assert h.can_multi_conn()\n\
         def below(at):\n    return open('{lun}', 'rb').read()[at:at + 4096] == b'7' * 4096\n\
         def asked(at):\n    return third.pread(4096, at) == b'7' * 4096\n\
         one.pwrite(b'7' * 4096, 4096)\n\
         print(asked(4096), below(4096))\n\
         other.flush()\n\
         print(below(4096))\n\
         other.pwrite(b'7' * 4096, 65536, nbd.CMD_FLAG_FUA)\n\
         print(asked(65536), below(65536))\n\
         one.zero(4096, 65536, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)\n\
         print(asked(65536), below(65536))",
        uri = host.uri("t"),
        lun = disk.lun.display(),
    ));
    let answers: Vec<&str> = told.lines().collect();
    assert_eq!(
        answers,
        ["True False", "True", "True True", "False False"],
        "{told}"
    );
    assert!(host.terminate().success());
}

/// The kernel knows of every disk whether it rotates, and an administrator may tell it otherwise.
#[test]
fn disks_that_rotate_are_said_to() {
    needs_loop_devices!("nbdinfo");
    let ground = Ground::new();
    let disk = LoopDisk::new(ground.directory.path(), "lun", 8 << 20, 512);
    let name = disk.device.file_name().unwrap().to_str().unwrap();
    let rotational = format!("/sys/block/{name}/queue/rotational");
    let was = fs::read_to_string(&rotational).unwrap();
    for (told, wanted) in [("1", true), ("0", false)] {
        fs::write(&rotational, told).unwrap();
        let host = serve(&ground, disk.device.to_str().unwrap());
        let info: serde_json::Value =
            serde_json::from_str(&run("nbdinfo", &["--json", host.uri("t")])).unwrap();
        assert_eq!(info["exports"][0]["is_rotational"], wanted, "{info}");
        assert!(host.terminate().success());
    }
    fs::write(&rotational, was).unwrap();
}
