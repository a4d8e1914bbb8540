//! `nbd-export map`: one map as text, as JSON and as a picture.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::program::nbd_export;
use tests::{needs, volume};

/// Elements of an XML document by name, as another program reads it.
fn elements(document: &Path) -> Vec<String> {
    let script = "import sys, xml.etree.ElementTree as tree\n\
                  for element in tree.parse(sys.argv[1]).iter(): print(element.tag.split('}')[1])";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(document)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_map_is_text_json_and_a_picture() {
    needs!("python3");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a <volume> & more");
    volume::motley(&path);
    let file = path.to_str().unwrap();
    let identity = format!("{file}=lun0");
    let map = |more: &[&str]| {
        let arguments = [&["map", file, "--identity", &identity], more].concat();
        nbd_export(&arguments)
    };
    let text = map(&[]);
    let json: Value = serde_json::from_str(&map(&["--json"])).unwrap();
    let extents = json["extents"].as_array().unwrap();
    assert_eq!(text.lines().count(), extents.len());

    let picture = directory.path().join("map.svg");
    std::fs::write(&picture, map(&["--svg"])).unwrap();
    let elements = elements(&picture);
    assert_eq!(elements[0], "svg");
    let rectangles = elements.iter().filter(|name| *name == "rect").count();
    assert!(rectangles > extents.len(), "{rectangles}");
}
