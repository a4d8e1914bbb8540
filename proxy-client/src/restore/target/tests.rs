//! Old data never survive, and nothing that is refused is touched.

use super::*;

const SIZE: u64 = 4 << 20;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

fn other() -> FileId {
    FileId::Inode {
        device: u64::MAX,
        inode: u64::MAX,
    }
}

/// A file full of old data, to be overwritten as a device is.
fn full_of_old_data(dir: &Path) -> (PathBuf, File) {
    let path = dir.join("device");
    fs::write(&path, vec![0xa5; usize::try_from(SIZE).unwrap()]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    (path, file)
}

#[test]
fn zeroes_replace_old_data_wherever_they_begin_and_end() {
    let dir = tempfile::tempdir().unwrap();
    for (start, len) in [
        (0, SIZE),
        (0, 1),
        (1, 4095),
        (4095, (2 << 20) + 2),
        (4096, 1 << 20),
        (SIZE - 1, 1),
        (777, SIZE - 777),
    ] {
        for by in 0..=BY_DEVICE.len() {
            let (path, file) = full_of_old_data(dir.path());
            let mut target = Target::overwriting(file, &path, SIZE, SIZE, false).unwrap();
            target.zeroes = Zeroes::Write { by: by.into() };
            target.zero(range(start, len)).unwrap();
            target.finish(SIZE).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, SIZE);
            let (from, to): (usize, usize) = (start.try_into().unwrap(), (start + len).try_into().unwrap());
            let mut expected = vec![0xa5; bytes.len()];
            expected[from..to].fill(0);
            assert!(bytes == expected, "{start}+{len}, by way {by}");
        }
    }
}

#[test]
fn a_file_with_data_is_emptied_only_with_force() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = full_of_old_data(dir.path());
    drop(file);
    let error = Target::open(&path, Some(8192), false, Some(other())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty);
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    let target = Target::open(&path, Some(8192), true, Some(other())).unwrap();
    target.finish(8192).unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![0; 8192]);
}

#[test]
fn an_empty_file_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, b"").unwrap();
    let target = Target::open(&path, Some(8192), false, Some(other())).unwrap();
    target.zero(range(0, 4096)).unwrap();
    target.write(range(4096, 4096), &[7; 4096]).unwrap();
    target.finish(8192).unwrap();
    assert_eq!(fs::read(&path).unwrap()[4096..], [7; 4096]);
}

#[test]
fn the_image_itself_is_never_a_target() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, b"image").unwrap();
    let link = dir.path().join("link");
    fs::hard_link(&path, &link).unwrap();
    let image = FileId::of(&fs::metadata(&path).unwrap());
    let error = Target::open(&link, Some(4096), true, Some(image)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutputIsSource);
    assert_eq!(fs::read(&path).unwrap(), b"image");
}

#[test]
fn a_lun_that_is_being_read_is_refused_even_with_force() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = full_of_old_data(dir.path());
    file.lock_shared().unwrap();
    let error = Target::open(&path, Some(4096), true, Some(other())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetBusy);
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
}

#[test]
fn size_and_signature_decide_on_devices() {
    let dir = tempfile::tempdir().unwrap();
    let reopen = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
    let (path, file) = full_of_old_data(dir.path());
    let error = Target::overwriting(file, &path, SIZE + 1, SIZE, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetTooSmall);
    let target = Target::overwriting(reopen(&path), &path, SIZE - 1, SIZE, false).unwrap();
    assert_eq!(target.left_alone(), 1);
    reopen(&path).write_all_at(b"XFSB", 0).unwrap();
    let error = Target::overwriting(reopen(&path), &path, SIZE, SIZE, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty);
    Target::overwriting(reopen(&path), &path, SIZE, SIZE, true).unwrap();
}

#[test]
fn directories_and_character_devices_are_unfit() {
    for path in ["/", "/dev/null"] {
        let error = Target::open(Path::new(path), Some(0), true, Some(other())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TargetUnfit);
    }
}
