//! `info`, compared with what others say of the same servers.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::disk::{self, Scratch, run};
use tests::peer::Peer;
use tests::program::{self, Host};
use tests::{needs, volume};

const MIB: u64 = 1 << 20;

fn info(arguments: &[&str]) -> String {
    program::proxy_client(&[&["info"], arguments].concat())
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&info(&[arguments, &["--json"]].concat())).unwrap()
}

fn motley() -> (Scratch, PathBuf) {
    let directory = disk::scratch();
    let path = directory.path().join("disk");
    volume::motley(&path);
    (directory, path)
}

/// A qcow2 image with a backing file and a bitmap in which one MiB is dirty.
fn qcow2(directory: &Scratch, backing: &str) -> String {
    let image = directory.path().join("image.qcow2").to_str().unwrap().to_owned();
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, &image],
    );
    run("qemu-img", &["bitmap", "--add", &image, "b0"]);
    run("qemu-io", &["-c", "write -P 7 6M 1M", &image]);
    image
}

#[test]
fn maps_and_totals_are_those_of_nbdinfo() {
    needs!("nbdkit", "qemu-nbd", "qemu-img", "nbdinfo");
    let (directory, disk) = motley();
    let image = qcow2(&directory, disk.to_str().unwrap());
    let nbdkit = Peer::nbdkit_file(&[], &disk, &[]);
    let qemu = Peer::qemu_nbd(&["-r", "-f", "qcow2", "-A", "-B", "b0", &image]);
    let host = Host::serve(&[
        &format!("vol={}", disk.display()),
        "--socket",
        directory.path().join("s").to_str().unwrap(),
        "--control",
        directory.path().join("c").to_str().unwrap(),
    ]);
    for (uri, contexts) in [
        (nbdkit.uri_text(""), &["base:allocation"][..]),
        (
            qemu.uri_text(""),
            &["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"],
        ),
        (host.uri("vol").to_owned(), &["base:allocation"]),
    ] {
        for context in contexts {
            let map = format!("--map={context}");
            let theirs = |arguments: &[&str]| -> Value {
                serde_json::from_str(&run("nbdinfo", &[arguments, &[&map, "--json", &uri]].concat())).unwrap()
            };
            assert_eq!(
                joined(&json(&[&map, &uri])),
                joined(&theirs(&[])),
                "{uri} {context}"
            );
            let sums = |totals: &Value| -> Vec<_> {
                let lines = totals.as_array().unwrap().iter();
                let mut sums: Vec<_> = lines.map(|l| (l["type"].as_u64(), l["size"].as_u64())).collect();
                sums.sort_unstable();
                sums
            };
            assert_eq!(
                sums(&json(&[&map, "--totals", &uri])),
                sums(&theirs(&["--totals"])),
                "{uri} {context}"
            );
        }
    }
    let dirty = json(&["--map=qemu:dirty-bitmap:b0", &qemu.uri_text("")]);
    assert_eq!(dirty[1]["description"], "dirty", "{dirty}");
}

/// Offset, length and status; nbdinfo does not always join what its server sent in two replies.
fn joined(map: &Value) -> Vec<(u64, u64, u64)> {
    let mut extents: Vec<(u64, u64, u64)> = Vec::new();
    for line in map.as_array().unwrap() {
        let field = |name: &str| line[name].as_u64().unwrap();
        let (offset, length, status) = (field("offset"), field("length"), field("type"));
        match extents.last_mut() {
            Some(last) if last.2 == status => last.1 += length,
            _ => extents.push((offset, length, status)),
        }
    }
    extents
}

#[test]
fn the_map_is_that_of_qemu_img() {
    needs!("nbdkit", "qemu-img");
    let (_directory, disk) = motley();
    let peer = Peer::nbdkit_file(&[], &disk, &[]);
    let uri = peer.uri_text("");
    let theirs: Value =
        serde_json::from_str(&run("qemu-img", &["map", "--output=json", "-f", "raw", &uri])).unwrap();
    let theirs: Vec<_> = theirs
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            (
                e["start"].as_u64().unwrap(),
                e["length"].as_u64().unwrap(),
                e["zero"] == true,
            )
        })
        .collect();
    let ours: Vec<_> = joined(&json(&["--map", &uri]))
        .into_iter()
        .map(|(offset, length, status)| (offset, length, status & 2 != 0))
        .collect();
    assert_eq!(ours, theirs);
}

/// Extents that go on are joined; those of an address never into a place where the bytes are not.
#[test]
fn addresses_are_those_of_the_bytes() {
    let (directory, disk) = motley();
    let host = Host::serve(&[
        &format!("vol={}", disk.display()),
        "--socket",
        directory.path().join("s").to_str().unwrap(),
        "--control",
        directory.path().join("c").to_str().unwrap(),
    ]);
    let uri = host.uri("vol");
    let details = json(&[uri]);
    let contexts: Vec<_> = details["contexts"].as_array().unwrap().iter().collect();
    let stores: Vec<_> = contexts
        .iter()
        .filter_map(|name| name.as_str().filter(|name| name.starts_with("x-volmap:store:0:")))
        .collect();
    assert!(
        contexts.iter().any(|name| *name == "x-volmap:generation"),
        "{details}"
    );
    for store in stores {
        let map = json(&[&format!("--map={store}"), uri]);
        let lines = map.as_array().unwrap();
        let covered: u64 = lines.iter().map(|line| line["length"].as_u64().unwrap()).sum();
        assert_eq!(covered, 32 * MIB);
        for pair in lines.windows(2) {
            let field = |n: usize, name: &str| pair[n][name].as_u64().unwrap();
            let goes_on = field(0, "type") + field(0, "length") == field(1, "type");
            assert!(!(goes_on && field(0, "type") >> 63 == 1), "not joined: {pair:?}");
        }
    }
}

/// Since 8.2.
fn qemu_has_extended_headers() -> bool {
    let told = Command::new("qemu-nbd").arg("--version").output().unwrap().stdout;
    let told = String::from_utf8(told).unwrap();
    let version = told.split_whitespace().nth(1).unwrap();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap());
    (numbers.next(), numbers.next()) >= (Some(8), Some(2))
}

#[test]
fn details_are_those_that_the_server_tells() {
    needs!("qemu-nbd", "nbdinfo");
    let (_directory, disk) = motley();
    let peer = Peer::qemu_nbd(&["-f", "raw", "-x", "vm", "-D", "a disk", disk.to_str().unwrap()]);
    let uri = peer.uri_text("vm");
    let ours = json(&[&uri]);
    let theirs: Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri])).unwrap();
    let theirs = &theirs["exports"][0];
    for (our, their) in [
        (&ours["name"], &theirs["export-name"]),
        (&ours["description"], &theirs["description"]),
        (&ours["size"], &theirs["export-size"]),
        (&ours["contexts"], &theirs["contexts"]),
        (&ours["block"]["minimum"], &theirs["block_size_minimum"]),
        (&ours["block"]["preferred"], &theirs["block_size_preferred"]),
        (&ours["block"]["maximum"], &theirs["block_size_maximum"]),
    ] {
        assert_eq!(our, their);
    }
    let flags = ours["flags"].as_array().unwrap();
    for (flag, name) in [
        ("READ_ONLY", "is_read_only"),
        ("CAN_MULTI_CONN", "can_multi_conn"),
        ("SEND_FAST_ZERO", "can_fast_zero"),
        ("SEND_WRITE_ZEROES", "can_zero"),
        ("SEND_TRIM", "can_trim"),
        ("SEND_FUA", "can_fua"),
        ("ROTATIONAL", "is_rotational"),
    ] {
        assert_eq!(flags.contains(&flag.into()), theirs[name] == true, "{flag}");
    }
    let replies = match qemu_has_extended_headers() {
        true => "extended",
        false => "structured",
    };
    assert_eq!((&ours["replies"], &ours["tls"]), (&replies.into(), &false.into()));
    assert_eq!(info(&["--size", &uri]).trim(), (32 * MIB).to_string());
    let text = info(&[&uri]);
    assert!(
        text.contains("\"vm\"") && text.contains("base:allocation"),
        "{text}"
    );
    let listed = json(&["--list", &uri]);
    assert_eq!(listed["exports"][0]["name"], "vm");
    assert_eq!(info(&["--list", &uri]).trim(), "\"vm\"  a disk");
}

#[test]
fn many_exports_are_listed_on_one_connection() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&[
        "eval",
        "list_exports=echo NAMES; for n in $(seq 2000); do echo export$n; done",
        "get_size=echo 512",
        "pread=exit 1",
    ]);
    let listed = json(&["--list", &peer.uri_text("")]);
    assert_eq!(listed["exports"].as_array().unwrap().len(), 2000);
}

/// What a server calls its export reaches no terminal as it is.
#[test]
fn nothing_that_a_server_says_steers_a_terminal() {
    needs!("nbdkit");
    let name = "a\x1b[31mb\u{9b}2Jc\u{202e}d";
    let peer = Peer::nbdkit(&[
        "eval",
        &format!("list_exports=printf 'NAMES+DESCRIPTIONS\\n{name}\\n{name}\\n'"),
        &format!("default_export=printf '{name}'"),
        "get_size=echo 512",
        "pread=exit 1",
    ]);
    let uri = peer.uri_text("");
    for arguments in [&["--list"][..], &["--list", "--json"], &[], &["--json"]] {
        let text = info(&[arguments, &[&uri]].concat());
        let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!text.contains(steers), "{arguments:?}: {text:?}");
        assert!(text.contains("[31mb"), "{arguments:?}: {text:?}");
    }
    let listed = json(&["--list", &uri]);
    assert_eq!(listed["exports"][0]["name"], name, "JSON tells it whole");
}

#[test]
fn what_is_not_there_is_a_failure() {
    needs!("qemu-nbd");
    let (_directory, disk) = motley();
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", "-x", "vm", disk.to_str().unwrap()]);
    let fails = |kind: &str, arguments: &[&str]| {
        let error = program::fails("proxy-client", 1, &[&["info"], arguments].concat());
        assert_eq!(error["kind"], kind, "{error}");
    };
    fails("host-refused", &[&peer.uri_text("nothing")]);
    fails(
        "host-incompatible",
        &["--map=qemu:dirty-bitmap:none", &peer.uri_text("vm")],
    );
    fails("host-lost", &["nbd+unix:///x?socket=/no/such/socket"]);
}

/// Tens of thousands of extents, in many replies.
#[test]
fn a_fragmented_map_covers_the_export_once() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&[
        "-r",
        "sparse-random",
        "1G",
        "seed=7",
        "percent=50",
        "runlength=8192",
    ]);
    let uri = peer.uri_text("");
    let map = info(&["--map", &uri]);
    let covered: u64 = map
        .lines()
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(covered, 1 << 30);
    let totals = json(&["--map", "--totals", &uri]);
    let sum: u64 = totals
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["size"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, 1 << 30);
}

/// A map that fills a pipe which nobody reads: a signal ends it at once, and so does the end of the reader.
#[test]
fn a_map_that_nobody_reads_can_be_stopped() {
    needs!("nbdkit");
    // nbdkit 1.32 does not outlive a client that leaves with replies under way: a new one for each.
    let fragmented = || {
        let extents = ["seed=3", "percent=50", "runlength=4096"];
        Peer::nbdkit(&[&["-r", "sparse-random", "2G"][..], &extents].concat())
    };
    for (json, signal) in [(&["--json"][..], Signal::SIGINT), (&[], Signal::SIGTERM)] {
        let peer = fragmented();
        let uri = peer.uri_text("");
        let arguments = [&["--error-format", "json", "info", "--map", &uri], json].concat();
        let mut running = program::start("proxy-client", &arguments, Stdio::null());
        // The pipe holds 64 KiB, and the map is far longer.
        running.wait_until_stdout_waits();
        thread::sleep(Duration::from_millis(700));
        running.signal(signal);
        let begun = Instant::now();
        while running.is_alive() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{signal} is not heard");
            thread::sleep(Duration::from_millis(10));
        }
        let output = running.wait();
        assert_eq!(output.status.code(), Some(1));
        let error = program::error_object(&output);
        assert_eq!(error["kind"], "interrupted", "{error}");
    }
    let peer = fragmented();
    let uri = peer.uri_text("");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut head = Command::new(program::built("proxy-client"));
    head.args(["--error-format", "json", "info", "--map", &uri]);
    let mut child = head.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    drop((reader, head));
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(100), "it prints to nobody");
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(program::error_object(&output)["kind"], "io");
}
