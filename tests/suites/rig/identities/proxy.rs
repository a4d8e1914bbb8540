//! What a proxy makes of disks.

use serde_json::Value;
use tests::guest::Guest;

use super::super::sha256_of_image;

/// A backup by a proxy that has to read all of it directly. The report and the digest of what it read; or the error.
pub(super) fn backup_by(proxy: &Guest, uri: &str, luns: &[&str]) -> Result<(Value, String), Value> {
    let luns: String = luns.iter().map(|lun| format!(" --lun {lun}")).collect();
    let output = proxy.try_run(&format!(
        "rm -f /run/share/image*
         proxy-client --error-format json backup {uri}{luns} --require-direct 100 --output /run/share/image --json 2>&1"
    ));
    let line = output.stdout.lines().rfind(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{output:?}"));
    let value: Value = serde_json::from_str(line).unwrap();
    let image = proxy.share.join("image");
    if output.status == 0 {
        return Ok((value, sha256_of_image(&image)));
    }
    assert_eq!(value["exit_code"], output.status, "{output:?}");
    assert!(!image.exists(), "there is an image in spite of {value}");
    Err(value)
}

/// A backup that is refused, with this kind and exit code, and words in the message.
pub(super) fn assert_refused(
    proxy: &Guest,
    uri: &str,
    luns: &[&str],
    kind: &str,
    exit_code: i32,
    words: &[&str],
) {
    let refused = backup_by(proxy, uri, luns).unwrap_err();
    assert_eq!(
        (&refused["kind"], &refused["exit_code"]),
        (&kind.into(), &exit_code.into()),
        "{luns:?}: {refused}"
    );
    let message = refused["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "{luns:?}: no {word:?} in {message:?}");
    }
    eprintln!("right: {luns:?} is refused: {message}");
}

/// What the doctor finds on a disk: the severities and kinds, with the devices that they are about.
pub(super) fn findings(guest: &Guest, node: &str) -> Vec<(String, String)> {
    let output = guest.try_run(&format!("proxy-client doctor --json --lun {node}"));
    let examination: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"));
    let findings = examination["luns"][0]["findings"].as_array().unwrap().iter();
    let mut found: Vec<_> = findings
        .filter(|finding| finding["severity"] != "note")
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap().to_owned();
            (text("kind"), text("device"))
        })
        .collect();
    found.sort_unstable();
    let is_danger = examination["luns"][0]["dangerous"] == true;
    assert_eq!(output.status, i32::from(is_danger), "{examination}");
    found
}

pub(super) fn found(kind: &str, device: &str) -> Vec<(String, String)> {
    vec![(kind.to_owned(), device.to_owned())]
}
