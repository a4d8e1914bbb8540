//! `verify`: a good image is called good, any other is not.

use proxy_client::error::ErrorKind;
use proxy_client::interrupt::Interrupt;
use proxy_client::job::verify::verify;

use crate::fixture::{DAMAGED, Fixture, VOLUME, quiet};

#[test]
fn a_good_image_is_good() {
    let fixture = Fixture::new(VOLUME);
    let verified = verify(&fixture.image_path(), &[], &Interrupt::default(), &mut quiet).unwrap();
    assert_eq!(verified.end, fixture.end);
    assert_eq!(verified.header.volume, "vm1");
    assert!(verified.unreadable.error().is_none());
}

#[test]
fn a_damaged_volume_in_a_good_image_ends_with_exit_code_3() {
    let fixture = Fixture::new(DAMAGED);
    let verified = verify(&fixture.image_path(), &[], &Interrupt::default(), &mut quiet).unwrap();
    assert_eq!(verified.unreadable.bytes, 4096);
    assert_eq!(verified.unreadable.error().unwrap().kind().exit_code(), 3);
}

#[test]
fn cut_changed_and_extended_images_end_with_exit_code_6() {
    let fixture = Fixture::new(VOLUME);
    let mut paths_checked = 0;
    let cuts = fixture.frame_ends().into_iter().flat_map(|end| [end - 1, end]);
    for cut in cuts {
        let error = verify(
            &fixture.with_image(&fixture.image[..cut]),
            &[],
            &Interrupt::default(),
            &mut quiet,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageBad);
        assert_eq!(error.kind().exit_code(), 6);
        paths_checked += 1;
    }
    assert!(paths_checked > 20);
    let error = verify(&fixture.changed(), &[], &Interrupt::default(), &mut quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageBad);
    for more in [&b"\0"[..], &fixture.image] {
        let longer = [&fixture.image[..], more].concat();
        let error = verify(
            &fixture.with_image(&longer),
            &[],
            &Interrupt::default(),
            &mut quiet,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageBad);
    }
}
