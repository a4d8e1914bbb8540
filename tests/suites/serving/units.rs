//! The units of systemd.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use tests::disk::scratch;
use tests::needs;
use tests::program::built;

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    needs!("systemd-analyze");
    let directory = scratch();
    let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd");
    let units: Vec<_> = fs::read_dir(packaging)
        .unwrap()
        .map(|unit| {
            let unit = unit.unwrap();
            let text = fs::read_to_string(unit.path()).unwrap();
            let copy = directory.path().join(unit.file_name());
            // A program that is not installed is the only thing wrong here.
            let text = ["nbd-export", "proxy-client"].iter().fold(text, |text, name| {
                text.replace(&format!("/usr/bin/{name}"), built(name).to_str().unwrap())
            });
            fs::write(&copy, text).unwrap();
            copy
        })
        .collect();
    assert_eq!(units.len(), 4);
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .args(&units)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let wrong = said.contains("nbd-export.") || said.contains("proxy-client.");
    assert!(output.status.success() && !wrong, "{said}");
}

/// The system calls of a group of systemd's, which may hold other groups.
fn put_calls_of(group: &str, calls: &mut BTreeSet<String>) {
    let output = Command::new("systemd-analyze")
        .args(["syscall-filter", group])
        .output()
        .unwrap();
    assert!(output.status.success(), "{group}");
    let told = String::from_utf8(output.stdout).unwrap();
    for name in told.lines().skip(1).map(str::trim) {
        match name.starts_with('@') {
            true => put_calls_of(name, calls),
            false => drop(calls.insert(name.to_owned())),
        }
    }
}

/// Those that have no wrapper of their own are the unusual ones, which no group may have. (`cachestat` is none of them here: many a systemd does not
/// know its name, and without it more is handed over to threads.)
#[test]
fn the_unit_of_the_agent_lets_it_make_the_system_calls_that_it_makes() {
    needs!("systemd-analyze");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let unit = fs::read_to_string(format!("{root}/packaging/systemd/nbd-export.service")).unwrap();
    let filter = unit
        .lines()
        .find_map(|line| line.strip_prefix("SystemCallFilter="))
        .unwrap();
    let mut allowed = BTreeSet::new();
    for word in filter.split(' ') {
        match word.starts_with('@') {
            true => put_calls_of(word, &mut allowed),
            false => drop(allowed.insert(word.to_owned())),
        }
    }
    let mut made = BTreeSet::new();
    for file in fs::read_dir(format!("{root}/volmap/src/sys")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for behind in text.split("libc::SYS_").skip(1) {
            let is_of_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            made.insert(behind.chars().take_while(is_of_name).collect::<String>());
        }
    }
    assert!(made.contains("fsopen"), "{made:?}");
    let forbidden: Vec<_> = made.difference(&allowed).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
}
