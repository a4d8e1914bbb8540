//! `doctor`, and that a LUN which this machine uses is not backed up from: loop devices here, LVM, md, swap and partitions in `rig`.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::Value;
use tests::disk::{LoopDisk, Mounted, scratch};
use tests::{needs, needs_loop_devices, peer, program};

/// What the doctor says of one LUN, and its exit code.
fn examine(lun: &Path) -> (Value, i32) {
    let argument = format!("id:a={}", lun.display());
    let output = program::run("proxy-client", &["doctor", "--json", "--lun", &argument]);
    let examination: Value = serde_json::from_slice(&output.stdout).unwrap();
    (examination["luns"][0].clone(), output.status.code().unwrap())
}

/// Kinds of findings of one severity.
fn kinds(lun: &Value, severity: &str) -> Vec<String> {
    let findings = lun["findings"].as_array().unwrap().iter();
    findings
        .filter(|finding| finding["severity"] == severity)
        .map(|finding| finding["kind"].as_str().unwrap().to_owned())
        .collect()
}

fn assert_danger(lun: &Path, kind: &str) {
    let (examined, code) = examine(lun);
    assert_eq!(code, 1, "{examined}");
    assert_eq!(examined["dangerous"], true);
    assert_eq!(kinds(&examined, "danger"), [kind], "{examined}");
}

fn assert_unused(lun: &Path) {
    let (examined, code) = examine(lun);
    assert_eq!(code, 0, "{examined}");
    assert_eq!(kinds(&examined, "danger"), [] as [&str; 0], "{examined}");
}

#[test]
fn a_mounted_lun_is_dangerous_under_each_of_its_names_and_not_afterwards() {
    needs_loop_devices!("mkfs.ext4", "mkfs.btrfs");
    for make in ["mkfs.ext4", "mkfs.btrfs"] {
        let mounted = Mounted::new(320 << 20, 512, make, &["-q"]);
        let other = LoopDisk::on(&mounted.disk.lun, &[]);
        let above = LoopDisk::on(&other.device, &[]);
        for lun in [
            &mounted.disk.device,
            &mounted.disk.lun,
            &other.device,
            &above.device,
        ] {
            assert_danger(lun, "mounted");
        }
        drop(above);
        drop(other);
        let (examined, _) = examine(&mounted.disk.device);
        assert_eq!(kinds(&examined, "note"), ["attractive", "writable"], "{examined}");
        let (text, code) = {
            let argument = format!("id:a={}", mounted.disk.device.display());
            let output = program::run("proxy-client", &["doctor", "--lun", &argument]);
            (
                String::from_utf8(output.stdout).unwrap(),
                output.status.code().unwrap(),
            )
        };
        let point = mounted.path.canonicalize().unwrap();
        assert!(
            text.contains(point.to_str().unwrap()) && text.contains("umount"),
            "{text}"
        );
        assert_eq!(code, 1);
    }
}

/// In a mount namespace of somebody else.
#[test]
fn a_mount_that_only_others_see_is_dangerous() {
    needs_loop_devices!("mkfs.ext4", "unshare");
    let directory = scratch();
    let disk = LoopDisk::new(directory.path(), "lun", 32 << 20, 512);
    let device = disk.device.to_str().unwrap();
    tests::disk::run("mkfs.ext4", &["-q", device]);
    let point = directory.path().join("mnt");
    std::fs::create_dir(&point).unwrap();
    assert_unused(&disk.device);
    let script = format!("mount {device} {} && echo mounted && cat", point.display());
    let mut other = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = other.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let (examined, code) = examine(&disk.device);
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(
        (line.trim(), code, kinds(&examined, "danger")),
        ("mounted", 1, vec!["mounted".to_owned()]),
        "{examined}"
    );
    assert_unused(&disk.device);
}

#[test]
fn who_has_it_exclusively_is_dangerous_and_who_may_write_is_told() {
    needs_loop_devices!();
    let directory = scratch();
    let disk = LoopDisk::new(directory.path(), "lun", 1 << 20, 512);
    let holder = File::options()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(&disk.device)
        .unwrap();
    assert_danger(&disk.device, "claimed");
    drop(holder);
    assert_unused(&disk.device);
    let _writer = File::options().write(true).open(&disk.device).unwrap();
    let (examined, code) = examine(&disk.device);
    assert_eq!(
        (code, kinds(&examined, "warning")),
        (0, vec!["open-for-writing".to_owned()])
    );
}

#[test]
fn a_lun_in_use_is_not_backed_up_from_unless_the_host_is_here() {
    needs_loop_devices!("nbdkit", "mkfs.ext4");
    needs!("zstd");
    let mounted = Mounted::ext4(32 << 20);
    let path = |name: &str| mounted.outside().join(name);
    let volume = path("volume");
    tests::volume::dense(&volume, 1 << 20);
    let server = peer::Peer::nbdkit(&["-r", "--exit-with-parent", "file", volume.to_str().unwrap()]);
    let (uri, image) = (server.uri_text(""), path("image"));
    let lun = format!("id:a={}", mounted.disk.device.display());
    let arguments = ["backup", &uri, "--output", image.to_str().unwrap(), "--lun", &lun];
    let error = program::fails("proxy-client", 1, &arguments);
    assert_eq!(error["kind"], "lun-in-use", "{error}");
    let told = error["message"].as_str().unwrap();
    assert!(told.contains("mounted") && told.contains("umount"), "{told}");
    assert!(
        error["advice"]
            .as_str()
            .unwrap()
            .contains("--host-is-this-machine")
    );
    tests::image::assert_nothing_left(&image);
    program::proxy_client(&[&arguments[..], &["--host-is-this-machine"]].concat());
    tests::image::assert_holds(&image, &volume);
}
