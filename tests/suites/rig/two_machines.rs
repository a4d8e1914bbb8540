//! Two machines on two shared LUNs: the host has itself backed up by the daemon of the other, whose repository is on the second LUN, while the
//! host's volume is written to. Either of them loses its power in the midst of it, and comes back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd_export::proxy::{JobReport, JobState};
use serde_json::Value;
use tests::guest::{Guest, Process, Rig, Setup};
use tests::needs_guests;
use tests::pki::{Authority, Subject, TlsDirectory};

use super::{MIB, sha256_in, sha256_of_device};

/// Noise for the first half. The rest makes the job longer than it takes to cut the power, and not much more.
const SIZE: u64 = 192 * MIB;

/// How long an image is when the power goes, in bytes: two batches, after the first of which there is a checkpoint.
const FAR: u64 = 64 * MIB;

/// Longest wait for a job: far beyond what a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(600);

/// The host and the proxy, which share both LUNs and trust one authority.
struct Machines {
    rig: Rig,
    luns: [PathBuf; 2],
}

impl Machines {
    fn new() -> Self {
        let rig = Rig::new();
        let luns = [rig.disk("lun0", 512 * MIB), rig.disk("lun1", 1024 * MIB)];
        Self { rig, luns }
    }

    fn boot(&self, name: &str) -> Guest {
        let setup = Setup {
            disks: &[&self.luns[0], &self.luns[1]],
            // It lives through several boots of the other.
            deadline: Duration::from_secs(1200),
            ..Setup::default()
        };
        self.rig.boot_with(name, &setup)
    }
}

/// The host: a logical volume on the first LUN that is written to all the time, and the agent.
struct Host {
    guest: Guest,
    agent: Process,
}

impl Host {
    /// Activates what is on the LUN, and goes on.
    fn begin(guest: Guest) -> Self {
        guest.run("vgchange -qq -ay vg >&2; nbd-export cleanup --yes >&2");
        assert_eq!(snapshots(&guest), [] as [&str; 0], "nothing is left of the past");
        let mut writer = guest.start(
            "echo writing
             while :; do
                 dd if=/dev/urandom of=/dev/vg/db bs=64k seek=$((RANDOM % 1536)) count=1 oflag=direct status=none
                 sleep 0.02
             done",
        );
        assert_eq!(writer.line().as_deref(), Some("writing"));
        let (agent, _) = guest.serve(&format!(
            "db=/dev/vg/db --no-freeze --snapshot-size 100% --identity /dev/ubda=lun0 --listen {}:10809 \
             --tls-dir /run/share/tls --allow db=proxy --control /run/control",
            guest.address
        ));
        Self { guest, agent }
    }

    /// `nbd-export backup` to the daemon of the other machine.
    fn back_up(&self, proxy: &Guest) -> Process {
        self.guest.start(&format!(
            "exec nbd-export --error-format json backup db --proxy https://{}:10808 --tls-dir /run/share/tls --host web --hold 900 \
             --control /run/control --json",
            proxy.address
        ))
    }

    /// SHA-256 of the sole snapshot.
    fn frozen(&self) -> String {
        let snapshots = snapshots(&self.guest);
        let [snapshot] = &snapshots[..] else {
            panic!("{snapshots:?}")
        };
        sha256_of_device(&self.guest, snapshot)
    }
}

/// The devices of our snapshots on a machine.
fn snapshots(guest: &Guest) -> Vec<String> {
    let paths = guest.run("lvs --noheadings -o lv_path @volmap");
    paths.split_whitespace().map(str::to_owned).collect()
}

/// Mounts the repository on a proxy that has booted.
fn mount(guest: &Guest) {
    guest.run("mkdir /repository; mount /dev/ubdb /repository");
}

/// Starts the daemon, and waits until it listens.
fn start_daemon(guest: &Guest) {
    guest.run("mkdir /run/proxy-client");
    let daemon = guest.start("exec proxy-client --log-format json daemon --config /run/share/daemon.toml");
    guest.run(&format!(
        "until [ -S /run/proxy-client/control ]; do kill -0 {}; sleep 0.1; done",
        daemon.pid
    ));
}

/// A job as it is.
fn job(proxy: &Guest, id: u64) -> Option<JobReport> {
    let output = proxy.try_run(&format!("proxy-client jobs {id} --json 2>/dev/null"));
    (output.status == 0).then(|| serde_json::from_str(&output.stdout).unwrap())
}

/// Waits until a job is as it should be.
fn wait_until(proxy: &Guest, id: u64, is: impl Fn(&JobReport) -> bool) -> JobReport {
    let until = Instant::now() + PATIENCE;
    loop {
        let job = job(proxy, id);
        match job {
            Some(job) if is(&job) => return job,
            Some(job) => assert!(!job.state.is_final() && Instant::now() < until, "{job:?}"),
            None => assert!(Instant::now() < until, "there is no job {id}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sets how fast a job reads as soon as there is one.
fn limit(proxy: &Guest, id: u64, rate: &str) {
    proxy.run(&format!(
        "for i in $(seq 300); do proxy-client jobs {id} --limit-rate {rate} >/dev/null 2>&1 && exit; done; exit 1"
    ));
}

/// Waits until a job is well under way, with a checkpoint on the disk, and lets it hardly go on from there.
fn hold_back(proxy: &Guest, id: u64) -> JobReport {
    limit(proxy, id, "4M");
    proxy.run(&format!(
        "for i in $(seq 3000); do
             size=$(stat -c %s /repository/images/web/db/*-{id}.vbi.zst.partial 2>/dev/null || echo 0)
             [ $size -lt {FAR} ] || exit 0
             sleep 0.02
         done
         exit 1"
    ));
    limit(proxy, id, "64K");
    wait_until(proxy, id, |job| {
        job.progress.is_some_and(|progress| progress.done > 0)
    })
}

/// Every file of the repository.
fn files(proxy: &Guest) -> Vec<String> {
    let files = proxy.run("cd /repository/images; find . -type f ! -name .lock | sort");
    files
        .lines()
        .map(|line| line.trim_start_matches("./").to_owned())
        .collect()
}

/// The image of a job that is done was verified by the daemon, and what is restored from it is the frozen volume.
fn assert_image(proxy: &Guest, done: &JobReport, frozen: &str) {
    assert_eq!((done.state, done.verified), (JobState::Done, true), "{done:?}");
    let report = done.report.as_ref().unwrap();
    assert_eq!(
        (&report["bytes_direct"], &report["bytes_nbd"]),
        (&SIZE.into(), &0.into()),
        "{report}"
    );
    let image = format!("/repository/images/{}", done.image.as_deref().unwrap());
    proxy.run(&format!(
        "proxy-client restore {image} --output /repository/restored 2>&1 | cat >&2"
    ));
    let restored = sha256_in(proxy, "cat /repository/restored");
    assert_eq!(restored, frozen, "the image is not the frozen volume: {done:?}");
    proxy.run("rm /repository/restored");
}

fn put_certificates(authority: &Authority, guest: &Guest, name: &str) {
    let directory = TlsDirectory::trusting(authority)
        .with_server(&authority.issue(Subject::server(&[&guest.address])))
        .with_client(&authority.issue(Subject::client(name)));
    tests::disk::run(
        "cp",
        &[
            "-r",
            directory.text(),
            tests::site::text(&guest.share.join("tls")),
        ],
    );
}

fn configure(proxy: &Guest, host: &Guest) {
    let configuration = format!(
        "repository = \"/repository/images\"
         state = \"/repository/jobs.redb\"
         checkpoint-every = \"1M\"
         [listen]
         socket = \"/run/proxy-client/control\"
         tcp = [\"{}:10808\"]
         tls-dir = \"/run/share/tls\"
         [lun.disk]
         path = \"/dev/ubda\"
         identity = \"lun0\"
         [host.web]
         uri = \"nbds://{}\"
         tls-dir = \"/run/share/tls\"
         clients = [\"web\"]
         luns = [\"disk\"]",
        proxy.address, host.address
    );
    std::fs::write(proxy.share.join("daemon.toml"), configuration).unwrap();
}

#[test]
fn either_of_two_machines_is_lost_in_a_backup_and_comes_back() {
    needs_guests!("lvm", "mkfs.xfs");
    let machines = Machines::new();
    let (host, proxy) = (machines.boot("host"), machines.boot("proxy"));
    let authority = Authority::new("tests");
    put_certificates(&authority, &host, "web");
    put_certificates(&authority, &proxy, "proxy");
    configure(&proxy, &host);
    host.run(
        "pvcreate -qq -y /dev/ubda
         vgcreate -qq -s 1M vg /dev/ubda
         lvcreate -qq -y -Wn -L 192M -n db vg
         dd if=/dev/urandom of=/dev/vg/db bs=1M count=96 oflag=direct status=none",
    );
    proxy.run("mkfs.xfs -q /dev/ubdb");
    mount(&proxy);
    proxy.run("mkdir /repository/images");
    start_daemon(&proxy);
    let host = Host::begin(host);
    let proxy = proxy_lost(&machines, &host, proxy);
    host_lost(&machines, host, &proxy);
}

/// The daemon that comes back goes on from the last checkpoint by itself, and the command on the host never knew more than that nobody answered for
/// a while.
fn proxy_lost(machines: &Machines, host: &Host, proxy: Guest) -> Guest {
    let backup = host.back_up(&proxy);
    let before = hold_back(&proxy, 1);
    drop(proxy);
    let frozen = host.frozen();

    let proxy = machines.boot("proxy");
    mount(&proxy);
    // The same frozen image once more, in one go, while it is there.
    let report = proxy.run(&format!(
        "{{ proxy-client backup nbds://{}/{} --tls-dir /run/share/tls --lun lun0=/dev/ubda --output /repository/in-one-go --json \
             2>&1 >&3 | cat >&2; }} 3>&1",
        host.guest.address, before.request.export
    ));
    let in_one_go: Value = serde_json::from_str(&report).unwrap();
    start_daemon(&proxy);
    limit(&proxy, 1, "0");
    wait_until(&proxy, 1, |job| job.state.is_final());
    let output = backup.wait();
    assert_eq!(output.status, 0, "{output:?}");
    let mut ended: Value = serde_json::from_str(&output.stdout).unwrap();
    let ended: JobReport = serde_json::from_value(ended["jobs"][0].take()).unwrap();
    let gone_on = |note: &String| note.contains("gone on with from the last checkpoint");
    assert!(
        ended.attempts == 2 && ended.notes.iter().any(gone_on),
        "{ended:?}"
    );
    assert_eq!(ended.image, before.image, "{ended:?}");
    let report = ended.report.as_ref().unwrap();
    assert_eq!(report["root"], in_one_go["root"], "{report} {in_one_go}");
    assert_eq!(report["frozen"], in_one_go["frozen"], "{report} {in_one_go}");
    assert_image(&proxy, &ended, &frozen);
    assert_eq!(files(&proxy).len(), 2, "image and manifest: {:?}", files(&proxy));
    assert_eq!(snapshots(&host.guest), [] as [&str; 0], "it is thawed");
    assert_ne!(
        sha256_of_device(&host.guest, "/dev/vg/db"),
        frozen,
        "the writer goes on"
    );
    eprintln!("right: the proxy was lost: {report}");
    proxy
}

/// The frozen image went with the host: the job says so, nothing of it is left, and the next one is as good as any.
fn host_lost(machines: &Machines, host: Host, proxy: &Guest) {
    let before = files(proxy);
    drop(host.back_up(proxy));
    hold_back(proxy, 2);
    drop(host);

    let host = Host::begin(machines.boot("host"));
    // It has to ask the host about what it reads to hear of it.
    limit(proxy, 2, "0");
    let failed = wait_until(proxy, 2, |job| job.state.is_final());
    assert_eq!(
        (failed.state, failed.verified),
        (JobState::Failed, false),
        "{failed:?}"
    );
    let failure = failed.failure.as_ref().unwrap();
    assert_eq!(
        (failure.kind.as_str(), failure.exit_code),
        ("frozen-image-gone", 5),
        "{failed:?}"
    );
    assert_eq!(files(proxy), before, "nothing of it is left");
    eprintln!("right: the host was lost: {failed:?}");

    let backup = host.back_up(proxy);
    limit(proxy, 3, "64K");
    let frozen = host.frozen();
    limit(proxy, 3, "0");
    let output = backup.wait();
    assert_eq!(output.status, 0, "{output:?}");
    let done = job(proxy, 3).unwrap();
    assert_image(proxy, &done, &frozen);
    assert_eq!(files(proxy).len(), before.len() + 2, "{:?}", files(proxy));
    host.guest.run(&format!("kill {}", host.agent.pid));
    assert_eq!(host.agent.wait().status, 0);
}
