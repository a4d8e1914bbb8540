//! Whoever enters gets one frozen image, and stays with it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_export::proxy::JobState;
use tests::cutting_proxy::{Cut, CuttingProxy};
use tests::daemon::{Proxy, request};
use tests::program::{self, built};
use tests::site::text;
use tests::{digest, needs_loop_devices};

use super::{Ground, NEW, run};

impl Ground {
    fn backup_of(&self, uri: &str) -> Vec<String> {
        let (lun, image) = (
            format!("lun0={}", self.site.disk.disk.lun.display()),
            self.site.image(),
        );
        let arguments = [
            "--error-format",
            "json",
            "backup",
            uri,
            "--json",
            "--checkpoint-every",
            "1M",
            "--host-is-this-machine",
            "--lun",
            &lun,
            "--output",
            text(&image),
        ];
        arguments.map(str::to_owned).to_vec()
    }

    fn resume(&self, more: &[&str]) -> Vec<String> {
        let image = self.site.image();
        let arguments = [
            "--error-format",
            "json",
            "resume",
            text(&image),
            "--json",
            "--host-is-this-machine",
        ];
        arguments.iter().chain(more).map(ToString::to_string).collect()
    }

    fn assert_image_is_of_the_freeze(&self) {
        assert_eq!(self.site.image_digest(), self.site.original);
        fs::remove_file(self.site.image()).unwrap();
    }
}

fn finished(arguments: &[String]) -> serde_json::Value {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = program::start("proxy-client", &arguments, Stdio::null()).wait();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The volume is another one when the job goes on: what is made anew then would have other bytes.
#[test]
fn a_backup_that_was_killed_goes_on_with_the_image_that_was_made_for_it() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let mut ground = Ground::eager();
    let uri = ground.site.uri(NEW);
    for anew in [&[][..], &["--uri", &uri]] {
        let killed = Command::new("prlimit")
            .args(["--core=0", "--fsize=6000000"])
            .arg(built("proxy-client"))
            .args(ground.backup_of(&uri))
            .output()
            .unwrap();
        assert_eq!(killed.status.code(), None, "{killed:?}");
        ground.overwrite();
        let report = finished(&ground.resume(anew));
        assert!(report["bytes_direct"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(ground.frozen().len(), 1, "one was made, and it is still held");
        ground.assert_image_is_of_the_freeze();
        ground.thaw_all();
        ground.site.original = digest::of_file(&ground.site.volume());
    }
}

#[test]
fn a_connection_that_is_lost_is_taken_up_to_the_image_that_was_made() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut ground = Ground::eager();
    // That which has it made, that by which it is read, and the next.
    for connection in 0..4 {
        let cut = Cut {
            connection,
            after: 3000,
        };
        let cutting = CuttingProxy::new(&ground.site.socket(), cut);
        let report = finished(&ground.backup_of(&cutting.uri(NEW)));
        assert!(report["frozen"].is_string());
        assert_eq!(ground.frozen().len(), 1);
        ground.assert_image_is_of_the_freeze();
        ground.overwrite();
        ground.thaw_all();
        ground.site.original = digest::of_file(&ground.site.volume());
    }
}

#[test]
fn a_job_of_the_daemon_goes_on_with_its_image_after_a_kill() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let ground = Ground::eager();
    let tables = format!(
        "[lun.disk]\npath = {:?}\nidentity = \"lun0\"\n[host.web]\nuri = \"nbd+unix:///?socket={}\"\nis-this-machine = true\n\
         luns = [\"disk\"]\n",
        ground.site.disk.disk.device,
        ground.site.socket().display()
    );
    let mut proxy = Proxy::start("checkpoint-every = \"1M\"", &tables);
    let job = proxy.submit_and_be_killed_at(&request("web", NEW, "vm"), 10 << 20);
    ground.overwrite();
    proxy.begin();
    let done = proxy.wait_for_end(job);
    assert_eq!((done.state, done.verified), (JobState::Done, true), "{done:?}");
    let image = digest::of_command(Command::new("zstd").arg("-dcq").arg(proxy.image(&done)));
    assert_eq!(
        image, ground.site.original,
        "of the freeze, whatever was written since"
    );
    assert!(
        done.notes
            .iter()
            .any(|note| note.contains("from the last checkpoint")),
        "{done:?}"
    );
    assert_eq!(ground.frozen().len(), 1);
}

/// They know nothing of our contexts, and open several connections where they may.
#[test]
fn foreign_clients_get_one_frozen_image_each() {
    needs_loop_devices!("mkfs.xfs", "qemu-img", "nbdcopy");
    let ground = Ground::eager();
    let (uri, copy) = (ground.site.uri(NEW), ground.outside("copy"));
    for (program, arguments) in [
        (
            "nbdcopy",
            &["--connections=4", "--allocated", &uri, text(&copy)][..],
        ),
        (
            "qemu-img",
            &["convert", "-f", "raw", "-O", "raw", &uri, text(&copy)],
        ),
        ("nbdcopy", &["--synchronous", &uri, text(&copy)]),
    ] {
        let output = run(program, arguments);
        assert!(output.status.success(), "{program}: {output:?}");
        assert_eq!(digest::of_file(&copy), ground.site.original, "{program}");
        assert_eq!(ground.frozen().len(), 1, "{program}");
        ground.thaw_all();
        fs::remove_file(&copy).unwrap();
    }
}

#[test]
fn it_stays_while_it_is_read_and_ends_when_nobody_has_read_it_for_its_time() {
    needs_loop_devices!("mkfs.xfs", "nbdsh");
    let ground = Ground::new("", "[on-request]\nevery = 0\nhold = 12");
    let script = format!(
        "h.connect_uri({:?}); import time; time.sleep(15); assert len(h.pread(4096, 0)) == 4096; h.shutdown()",
        ground.site.uri(NEW)
    );
    let output = Command::new("timeout")
        .args(["120", "nbdsh", "-c", &script])
        // The module belongs to Debian's Python, and nbdsh takes the first that it finds.
        .env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let left = ground.frozen();
    assert_eq!(left.len(), 1, "a lost connection would find it");
    ground.wait_until_thawed();
    std::thread::sleep(Duration::from_millis(100));
    let again = run("nbdinfo", &["--size", &ground.site.uri(&left[0])]);
    assert!(!again.status.success(), "{again:?}");
}
