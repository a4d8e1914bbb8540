//! `nbd-export backup`: the host freezes, the proxy reads, and whatever is lost in between, nothing stays frozen.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nbd_export::proxy::JobState;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::daemon::{Proxy, request};
use tests::disk::Mounted;
use tests::image;
use tests::program::{self, Running, error_object};
use tests::site::{Site, VOLUME, text};
use tests::{needs, needs_loop_devices};

use super::Server;

/// A host with a volume that is not frozen, a proxy with one place for jobs, and a server that keeps that place busy.
struct Scene {
    site: Site,
    proxy: Proxy,
    _server: Server,
}

impl Scene {
    fn new() -> Self {
        let bytes: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_le_bytes).collect();
        let mut site = Site::new(Mounted::xfs(320 << 20), &bytes);
        site.serve(&["--no-freeze", "--keep-for-incremental"]);
        let server = Server::slow(3000);
        let tables = format!(
            "[lun.disk]\npath = {:?}\nidentity = \"lun0\"\n[host.web]\nuri = \"nbd+unix:///?socket={}\"\nluns = [\"disk\"]\n\
             is-this-machine = true\n{}",
            site.disk.disk.device,
            site.socket().display(),
            server.table("slow", "")
        );
        let proxy = Proxy::start("jobs = 1", &tables);
        Self {
            site,
            proxy,
            _server: server,
        }
    }

    /// From now on jobs wait.
    fn keep_busy(&self) -> u64 {
        let job = self.proxy.submit(&request("slow", "x", "y")).unwrap();
        self.proxy
            .wait_until(job.id, |job| job.state == JobState::Running);
        job.id
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let (url, control) = (self.proxy.url(), self.site.control());
        let arguments = [
            "backup",
            VOLUME,
            "--proxy",
            &url,
            "--host",
            "web",
            "--control",
            text(&control),
        ];
        let all = ["--error-format", "json"].iter().chain(&arguments).chain(more);
        all.map(ToString::to_string).collect()
    }

    fn start(&self, more: &[&str]) -> Running {
        let arguments = self.arguments(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        program::start("nbd-export", &arguments, Stdio::null())
    }

    /// Names of the frozen images that there are.
    fn frozen(&self) -> Vec<String> {
        self.listed("frozen", "export")
    }

    /// The parents of the next backup.
    fn kept(&self) -> Vec<String> {
        self.listed("kept", "uuid")
    }

    fn listed(&self, which: &str, what: &str) -> Vec<String> {
        let control = self.site.control();
        let listed = program::nbd_export(&["list", "--json", "--control", text(&control)]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let images = listed["volumes"][0][which].as_array().unwrap().iter();
        images
            .map(|image| image[what].as_str().unwrap().to_owned())
            .collect()
    }

    fn wait_until_thawed(&self) {
        let until = Instant::now() + Duration::from_secs(100);
        while !self.frozen().is_empty() {
            assert!(Instant::now() < until, "{:?} stays frozen", self.frozen());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the daemon has another job than the one that keeps it busy.
    fn handed_over(&self, busy: u64) -> u64 {
        let until = Instant::now() + Duration::from_secs(100);
        loop {
            let jobs = self.proxy.ask(async |daemon| daemon.jobs().await).unwrap().jobs;
            if let Some(job) = jobs.iter().find(|job| job.id > busy) {
                return job.id;
            }
            assert!(Instant::now() < until, "no job comes");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_host_has_itself_backed_up_and_is_thawed_then() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    needs!("nbdkit");
    let scene = Scene::new();
    let output = scene.start(&["--json"]).wait();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let jobs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let job = &jobs["jobs"][0];
    assert_eq!(
        (&job["state"], &job["verified"]),
        (&"done".into(), &true.into()),
        "{job}"
    );
    assert_eq!(job["report"]["bytes_direct"], 4 << 20, "{job}");
    assert_eq!(job["report"]["frozen"], job["request"]["frozen"], "{job}");
    assert_eq!(job["request"]["volume"], VOLUME);
    let done = scene.proxy.job(job["id"].as_u64().unwrap());
    image::assert_holds(&scene.proxy.image(&done), &scene.site.volume());
    assert_eq!(scene.frozen(), [] as [&str; 0]);

    // Somebody else waits for it.
    let busy = scene.keep_busy();
    let output = scene.start(&["--detach"]).wait();
    assert!(output.status.success());
    assert_eq!(scene.frozen().len(), 1);
    let id = scene.handed_over(busy);
    scene.proxy.ask(async |daemon| daemon.cancel(busy).await).unwrap();
    assert_eq!(scene.proxy.wait_for_end(id).state, JobState::Done);
    scene.wait_until_thawed();

    // The proxy's exit codes are ours.
    let missed = scene.start(&["--require-direct", "100"]).wait();
    assert!(missed.status.success(), "all of it is read directly");
}

#[test]
fn a_proxy_that_refuses_leaves_nothing_frozen() {
    needs_loop_devices!("mkfs.xfs");
    needs!("nbdkit");
    let mut scene = Scene::new();
    let (url, control) = (scene.proxy.url(), scene.site.control());
    let stranger = [
        "backup",
        VOLUME,
        "--proxy",
        &url,
        "--host",
        "nobody",
        "--control",
        text(&control),
    ];
    let error = program::fails("nbd-export", 1, &stranger);
    assert_eq!(error["kind"], "proxy", "{error}");
    assert_eq!(scene.frozen(), [] as [&str; 0]);
    scene.proxy.kill();
    let output = scene.start(&["--hold", "4"]).wait();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error_object(&output)["kind"], "proxy");
    assert_eq!(scene.frozen(), [] as [&str; 0]);
}

#[test]
fn an_interrupted_backup_is_cancelled_and_thawed() {
    needs_loop_devices!("mkfs.xfs");
    needs!("nbdkit");
    let scene = Scene::new();
    assert!(scene.start(&[]).wait().status.success());
    let parent = scene.kept();
    assert_eq!(parent.len(), 1, "what was filed is the parent of the next");
    let busy = scene.keep_busy();
    let backup = scene.start(&[]);
    let id = scene.handed_over(busy);
    assert_eq!(scene.frozen().len(), 1);
    backup.signal(Signal::SIGINT);
    let output = backup.wait();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error_object(&output)["kind"], "backup");
    assert_eq!(scene.proxy.job(id).state, JobState::Cancelled);
    assert_eq!(scene.frozen(), [] as [&str; 0]);
    assert_eq!(scene.kept(), parent, "nothing came of this one");

    // The same where it is the job that ends badly.
    let backup = scene.start(&[]);
    let id = scene.handed_over(id);
    scene.proxy.ask(async |daemon| daemon.cancel(id).await).unwrap();
    assert_eq!(backup.wait().status.code(), Some(1));
    assert_eq!(scene.frozen(), [] as [&str; 0]);
    assert_eq!(scene.kept(), parent);
}

#[test]
fn a_lost_proxy_costs_the_hold_and_no_more() {
    needs_loop_devices!("mkfs.xfs");
    needs!("nbdkit");
    let mut scene = Scene::new();
    let busy = scene.keep_busy();
    let backup = scene.start(&["--hold", "10"]);
    scene.handed_over(busy);
    scene.proxy.kill();
    let output = backup.wait();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error_object(&output)["kind"], "proxy");
    assert_eq!(scene.frozen(), [] as [&str; 0]);
}

/// Killed without warning: the agent thaws, and the job ends with the code for a frozen image that is gone.
#[test]
fn a_lost_command_costs_the_hold_and_no_more() {
    needs_loop_devices!("mkfs.xfs");
    needs!("nbdkit");
    let scene = Scene::new();
    let busy = scene.keep_busy();
    let backup = scene.start(&["--hold", "12"]);
    let id = scene.handed_over(busy);
    // It is renewed while there is somebody.
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(scene.frozen().len(), 1);
    backup.signal(Signal::SIGKILL);
    scene.wait_until_thawed();
    scene.proxy.ask(async |daemon| daemon.cancel(busy).await).unwrap();
    let ended = scene.proxy.wait_for_end(id);
    assert_eq!(
        ended.failure.as_ref().map(|failure| failure.exit_code),
        Some(5),
        "{ended:?}"
    );
}
