//! Two machines on one iSCSI LUN: one is the host, the other the proxy, and each knows the disk by its own WWID.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::guest::{Guest, Rig, Setup};
use tests::needs_guests;
use tests::site::text;

use super::{MIB, sha256_in, sha256_of_image};

const SIZE: u64 = 64 * MIB;

/// A user-space iSCSI target with one LUN, in the rig's network; killed when dropped.
pub(super) struct Target {
    child: Child,
    socket: PathBuf,
    port: u16,
}

impl Target {
    pub(super) fn serve(rig: &Rig, lun: &Path, port: u16) -> Self {
        let socket = rig.path(&format!("tgtd.{port}"));
        // It takes SIGTERM only while it has no targets, and has to go with this thread as the guests do.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "tgtd", "-f", "--iscsi"])
            .arg(format!("portal={}:{port}", Rig::ADDRESS))
            .env("PATH", path_with_sbin())
            .env("TGT_IPC_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let target = Self { child, socket, port };
        let until = Instant::now() + Duration::from_secs(20);
        while !target.admin("--op show --mode target") {
            assert!(Instant::now() < until, "tgtd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(target.admin("--op new --mode target --tid 1 -T iqn.2026-01.test:lun"));
        let lun = format!(
            "--op new --mode logicalunit --tid 1 --lun 1 --bstype rdwr -b {}",
            lun.display()
        );
        assert!(target.admin(&lun));
        assert!(target.admin("--op bind --mode target --tid 1 -I ALL"));
        target
    }

    fn admin(&self, arguments: &str) -> bool {
        Command::new("tgtadm")
            .args(["--lld", "iscsi"])
            .args(arguments.split(' '))
            .env("PATH", path_with_sbin())
            .env("TGT_IPC_SOCKET", &self.socket)
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    /// Logs a guest in, and gives back the device that it sees.
    pub(super) fn log_in(&self, guest: &Guest, initiator: &str) -> String {
        let device = guest.run(&format!(
            "before=$(ls /sys/block)
             iscsistart -i iqn.2026-01.test:{initiator} -t iqn.2026-01.test:lun -g 1 -a {} -p {} >&2
             for i in $(seq 100); do
                 for disk in $(ls /sys/block | grep '^sd'); do
                     case $before in *$disk*) ;; *) [ -b /dev/$disk ] && echo /dev/$disk && exit ;; esac
                 done
                 sleep 0.1
             done
             exit 1",
            Rig::ADDRESS,
            self.port
        ));
        device.trim().to_owned()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn path_with_sbin() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin"
}

/// A backup by a proxy that is a guest. The image comes to where the test can read it.
fn backup_in(proxy: &Guest, uri: &str, lun: &str) -> Result<serde_json::Value, serde_json::Value> {
    let output = proxy.try_run(&format!(
        "rm -f /run/share/image
         proxy-client --error-format json backup {uri} --lun {lun} --output /run/share/image --json 2>&1"
    ));
    let line = output.stdout.lines().rfind(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{output:?}"));
    let value = serde_json::from_str(line).unwrap();
    if output.status == 0 { Ok(value) } else { Err(value) }
}

#[test]
fn host_and_proxy_share_an_iscsi_lun_and_know_it_by_its_wwid() {
    needs_guests!("tgtd", "iscsistart", "mkfs.xfs", "zstd");
    let rig = Rig::new();
    let lun = rig.disk("lun", 512 * MIB);
    let target = Target::serve(&rig, &lun, 3260);
    let setup = Setup {
        modules: &["sd_mod", "iscsi_tcp"],
        ..Setup::default()
    };
    let (host, proxy) = (rig.boot_with("host", &setup), rig.boot_with("proxy", &setup));
    let disk = target.log_in(&host, "host");
    host.run(&format!(
        "mkfs.xfs -q {disk}; mkdir /xfs; mount {disk} /xfs
         dd if=/dev/urandom of=/xfs/vm.img bs=1M count=64 status=none; sync"
    ));
    let seen = target.log_in(&proxy, "proxy");
    let wwid = |guest: &Guest, disk: &str| {
        let disk = disk.trim_start_matches("/dev/").to_owned();
        guest
            .run(&format!("cat /sys/block/{disk}/device/wwid"))
            .trim()
            .to_owned()
    };
    let identity = wwid(&host, &disk);
    assert!(identity.starts_with("naa."), "{identity}");
    assert_eq!(wwid(&proxy, &seen), identity);

    let (agent, uris) = host.serve(&format!(
        "vm=/xfs/vm.img --freeze reflink --tag vm=/xfs/vm.tag --origin-listen {}:10809 --insecure-plaintext",
        host.address
    ));
    let uri = uris.iter().find(|uri| uri.ends_with("/vm")).unwrap();
    let writer = host.start(
        "while :; do
             dd if=/dev/urandom of=/xfs/vm.img bs=64k seek=$((RANDOM % 1024)) count=1 conv=notrunc oflag=direct status=none
         done",
    );
    let report = backup_in(&proxy, uri, &seen).unwrap();
    assert_eq!(report["bytes_direct"], SIZE, "{report}");
    assert_eq!(
        report["identity"][0]["lun"],
        identity.replacen('.', ":", 1),
        "{report}"
    );
    assert_eq!(report["identity"][0]["proof"], "tag", "{report}");
    let frozen = sha256_in(&host, "cat /xfs/.vm.img.*.frozen");
    let image = proxy.share.join("image");
    assert_eq!(sha256_of_image(&image), frozen, "{report}");
    assert_ne!(
        sha256_in(&host, "cat /xfs/vm.img"),
        frozen,
        "the writer changed the live file"
    );

    // Another array that has the same WWID for another disk: a clone of the LUN as it was a moment ago.
    let clone = rig.path("clone");
    tests::disk::run("cp", &["--sparse=always", text(&lun), text(&clone)]);
    let twin = Target::serve(&rig, &clone, 3261);
    let other = twin.log_in(&proxy, "proxy");
    assert_eq!(wwid(&proxy, &other), identity);
    let refused = backup_in(&proxy, uri, &other).unwrap_err();
    assert_eq!(refused["kind"], "wrong-lun", "{refused}");

    host.run(&format!("kill {} {}", writer.pid, agent.pid));
    assert_eq!(agent.wait().status, 0);
    host.run("umount /xfs");
}
