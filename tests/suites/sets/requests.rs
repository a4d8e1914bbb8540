//! What can be asked for as a set.

use std::fs;
use std::os::unix::fs::symlink;

use tests::disk::scratch;
use tests::program::{Host, fails};
use tests::site::text;

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let directory = scratch();
    let at = |name: &str| text(&directory.path().join(name)).to_owned();
    for name in ["a.img", "b.img"] {
        fs::write(at(name), b"x").unwrap();
    }
    fs::create_dir(at("dir")).unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/a.img"), b"x").unwrap();
    for bad in [
        &["--set", "s"][..],
        &["--volume", &at("a.img")],
        &["--set", "a b", "--volume", &at("a.img")],
        &["--set", "s", "--files", &at("*.raw")],
        &["--set", "s", "--files", &at("[")],
        &["--set", "s", "--files", &at("*")],
        &["--set", "s", "--files", &at("a.img"), &at("other/*")],
        &["--set", "a.img", "--files", &at("*.img")],
        &[
            "--set",
            "s",
            "--files",
            &at("a.img"),
            "--",
            &format!("a.img={}", at("b.img")),
        ],
        &["--set", "s", "--filesystem", &at("dir")],
        &["--set", "s", "--filesystem", "/proc"],
        &["--set", "s", "--set-origin", "nobody", "--files", &at("a.img")],
        &[
            "--set",
            "s",
            "--set-origin",
            "o",
            "o",
            "--origin",
            &format!("o={}", at("a.img")),
            "--copy-area",
            &at("old"),
        ],
        &["--set-origin", "o"],
    ] {
        fails("nbd-export", 2, &[&["serve"], bad].concat());
    }
}

#[test]
fn patterns_and_names_stand_for_files() {
    let directory = scratch();
    let at = |name: &str| text(&directory.path().join(name)).to_owned();
    for name in ["a.img", "b.img", ".hidden.img", "c[1].img", "c1.img", "other"] {
        fs::write(at(name), vec![7; 4096]).unwrap();
    }
    symlink(at("other"), at("d.img")).unwrap();
    let (socket, control) = (at("socket"), at("control"));
    let host = Host::serve(&[
        "--set",
        "s",
        "--files",
        &at("?.img"),
        &at("c[1].img"),
        "--volume",
        &format!("o={}", at("other")),
        "--freeze",
        "quiesce",
        "--socket",
        &socket,
        "--control",
        &control,
    ]);
    let names: Vec<&str> = host
        .uris
        .iter()
        .map(|uri| uri.split('?').next().unwrap().rsplit('/').next().unwrap())
        .collect();
    assert_eq!(names, ["a.img", "b.img", "c-1-.img", "d.img", "o"]);
    assert!(host.terminate().success());
}
