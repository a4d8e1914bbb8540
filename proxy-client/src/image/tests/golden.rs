//! Images that must be readable for ever, byte by byte as they were first written.
//!
//! A change of these bytes is a change of the format: raise the version, add a file, keep the old one. Only if zstd alone writes
//! other bytes, after an update, the file for writing is made anew beside the old one; BLESS=1 in the environment writes it.

use super::{decode, encode, stretch};
use crate::image::{Kind, LEAF};

const V1: &[u8] = include_bytes!("../golden/v1.vbi.zst");
const V1_ROOT: &str = include_str!("../golden/v1.root");

#[test]
fn version_1_stays_as_it_is() {
    let stretches = [
        stretch(5000, Kind::Data, 3),
        stretch(LEAF - 5000, Kind::Hole, 0),
        stretch(LEAF, Kind::Zero, 0),
        stretch(512, Kind::Unreadable, 0),
        stretch(1234, Kind::Data, 9),
    ];
    let (image, plain, end) = encode(&stretches);
    if std::env::var_os("BLESS").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/image/golden");
        std::fs::write(format!("{folder}/v1.vbi.zst"), &image).unwrap();
        std::fs::write(format!("{folder}/v1.root"), format!("{}\n", end.root)).unwrap();
    }
    let decoded = decode(V1).unwrap();
    assert!(decoded.plain == plain);
    assert_eq!(decoded.end.root, V1_ROOT.trim().parse().unwrap());
    assert_eq!(decoded.end, end);
    assert!(image == V1, "the writer writes other bytes than version 1");
}
