//! `backup`, before it comes to a host.

use std::fs::{self, File};
use std::process::Command;

/// Standard output may be the disk itself: `proxy-client backup … --output - > /dev/sdb`.
#[test]
fn standard_output_on_a_lun_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let lun = directory.path().join("lun");
    fs::write(&lun, vec![7; 8192]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_proxy-client"))
        .args([
            "--error-format",
            "json",
            "backup",
            "nbd+unix:///e?socket=/nowhere",
        ])
        .args(["--output", "-", "--lun"])
        .arg(format!("id:lun={}", lun.display()))
        .stdout(File::options().write(true).open(&lun).unwrap())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("\"output-is-source\""), "{error}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(&lun).unwrap(), vec![7; 8192]);
}
