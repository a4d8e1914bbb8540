//! `nbd-export probe`: what fits a volume, on the operator's word, too.

use serde_json::Value;
use tests::disk::{LoopDisk, scratch};
use tests::needs_loop_devices;
use tests::program::nbd_export;

const MIB: u64 = 1 << 20;

/// What is said of a provider.
fn verdict(provider: &str, arguments: &[&str]) -> Value {
    let text = nbd_export(&[&["probe", "--json"], arguments].concat());
    let told: Value = serde_json::from_str(&text).unwrap();
    let all = told["providers"].as_array().unwrap();
    let found = all.iter().find(|found| found["provider"] == provider);
    found.unwrap().clone()
}

#[test]
fn what_would_be_said_to_serve_is_said_to_probe() {
    needs_loop_devices!();
    let directory = scratch();
    let disk = LoopDisk::new(directory.path(), "lun", 4 * MIB, 512);
    let device = disk.device.to_str().unwrap();
    let told = verdict("static", &[device]);
    assert_eq!(told["fits"], false);
    assert!(
        told["remark"].as_str().unwrap().contains("--assume-exclusive"),
        "{told}"
    );
    let told = verdict("static", &[device, "--assume-exclusive"]);
    assert_eq!(
        (&told["fits"], &told["attestation"]),
        (&true.into(), &"unattested".into()),
        "{told}"
    );

    let file = directory.path().join("volume");
    std::fs::write(&file, [1; 4096]).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    let told = verdict(
        "reflink",
        &[file.to_str().unwrap(), "--clone-dir", elsewhere.to_str().unwrap()],
    );
    assert_eq!(told["fits"], false);
    assert!(
        told["remark"]
            .as_str()
            .unwrap()
            .contains(elsewhere.to_str().unwrap()),
        "{told}"
    );
}
