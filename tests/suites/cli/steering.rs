//! What others call their volumes is printed, and steers nothing.

use serde_json::Value;
use tests::disk::scratch;
use tests::needs;
use tests::peer::Peer;
use tests::program::run;

#[test]
fn what_others_say_steers_no_terminal() {
    needs!("nbdkit");
    let directory = scratch();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // A red word, a title of the window, and one that is turned around.
    let name = "a\u{1b}[31mb\u{9b}2J\u{202e}c";
    let url = "nbd+unix:///a%1B%5B31mb%C2%9B2J%E2%80%AEc?socket=";
    let peer = Peer::nbdkit(&["-r", "memory", "1M"]);
    let uri = format!("{url}{}", peer.socket().display());
    let nowhere = format!("{url}{}", at("nothing"));
    let report = |arguments: &[&str]| {
        let output = run("proxy-client", arguments);
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        text.concat()
    };
    let image = at("image");
    for text in [
        report(&["backup", &uri, "--output", &image]),
        report(&["inspect", &image]),
        report(&["inspect", "--json", &image]),
        report(&["backup", &nowhere, "--output", &at("other")]),
        report(&[
            "--error-format",
            "json",
            "backup",
            &nowhere,
            "--output",
            &at("other"),
        ]),
    ] {
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text:?}");
    }
    let inspected: Value = serde_json::from_str(&report(&["inspect", "--json", &image])).unwrap();
    assert_eq!(inspected["volume"], name, "it is all there");
}
