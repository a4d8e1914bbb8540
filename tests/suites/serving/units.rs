//! The units of systemd.

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
            let text = text.replace("/usr/bin/nbd-export", built("nbd-export").to_str().unwrap());
            fs::write(&copy, text).unwrap();
            copy
        })
        .collect();
    assert_eq!(units.len(), 2);
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .args(&units)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("nbd-export."), "{said}");
}
