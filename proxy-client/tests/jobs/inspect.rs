//! `inspect`: header and END without the data.

use std::path::Path;

use proxy_client::error::ErrorKind;
use proxy_client::job::inspect::inspect;

use crate::fixture::{DAMAGED, Fixture, VOLUME};

#[test]
fn it_says_what_the_image_says() {
    let fixture = Fixture::new(DAMAGED);
    let inspected = inspect(&fixture.image_path()).unwrap();
    assert_eq!(inspected.end, fixture.end);
    let json = inspected.to_json();
    assert_eq!(json["volume"], "vm1");
    assert_eq!(json["size"], fixture.plain.len());
    assert_eq!(json["bytes_direct"], 100_000);
    assert_eq!(json["bytes_hole"], 200_000);
    assert_eq!(json["bytes_unreadable"], 4096);
    assert_eq!(json["root"], fixture.end.root.to_string());
    assert_eq!(json["luns"][0]["proof"], "sampled only");
    assert_eq!(json["frozen"], "00000000-0000-0000-0000-000000000002");
}

/// The seek table betrays a cut or anything added or lost before END, without a look at the data.
#[test]
fn a_file_of_another_length_is_no_image() {
    let fixture = Fixture::new(VOLUME);
    let ends = fixture.frame_ends();
    for cut in 0..fixture.image.len() {
        if cut % 997 == 0 || ends.contains(&cut) || cut + 300 > fixture.image.len() {
            let error = inspect(&fixture.with_image(&fixture.image[..cut])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ImageBad, "{cut}");
        }
    }
    let mut lost = fixture.image.clone();
    lost.drain(ends[1]..ends[2]);
    let doubled = [&fixture.image[..ends[2]], &fixture.image[ends[1]..]].concat();
    let longer = [&fixture.image[..], b"x"].concat();
    let twice = [&fixture.image[..], &fixture.image].concat();
    for other in [lost, doubled, longer, twice] {
        let error = inspect(&fixture.with_image(&other)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageBad);
    }
}

#[test]
fn every_changed_byte_of_header_end_and_table_is_noticed() {
    let fixture = Fixture::new(DAMAGED);
    let ends = fixture.frame_ends();
    let tail = ends[ends.len() - 2]..fixture.image.len();
    for at in (0..ends[0]).chain(tail) {
        let mut image = fixture.image.clone();
        image[at] ^= 0x10;
        assert!(inspect(&fixture.with_image(&image)).is_err(), "byte {at}");
    }
}

#[test]
fn streams_cannot_be_inspected() {
    assert_eq!(
        inspect(Path::new("/dev/null")).unwrap_err().kind(),
        ErrorKind::Usage
    );
}
