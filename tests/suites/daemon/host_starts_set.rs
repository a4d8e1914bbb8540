//! `nbd-export backup` of a set, over a socket and over https: a job for each volume, and one end for all.

use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nbd_export::proxy::{JobReport, JobState};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::daemon::{Proxy, request};
use tests::disk::Mounted;
use tests::pki::{Pki, Subject, TlsDirectory};
use tests::program::{self, Host, Running, error_object};
use tests::site::text;
use tests::volume::noise;
use tests::{digest, image, needs, needs_loop_devices};

use super::Server;
use super::access::free_port;

const VOLUMES: [&str; 2] = ["a", "b"];

/// A host with a set of two files that is not frozen, and a proxy with one place for jobs that listens at a socket and, for those with a
/// certificate, at a port.
struct Scene {
    // First: it has files of the disk open.
    _host: Host,
    disk: Mounted,
    proxy: Proxy,
    pki: Pki,
    port: u16,
    _server: Server,
}

impl Scene {
    fn new() -> Self {
        let disk = Mounted::xfs(512 << 20);
        for (seed, name) in (0..).zip(VOLUMES) {
            fs::write(disk.path.join(name), noise(seed, 4 << 20)).unwrap();
        }
        let path = |name: &str| disk.outside().join(name);
        let host = Host::serve(&[
            "--set",
            "db",
            "--files",
            &format!("{}/[ab]", disk.path.display()),
            "--no-freeze",
            "--keep-for-incremental",
            "--socket",
            text(&path("socket")),
            "--control",
            text(&path("control")),
        ]);
        let (pki, port, server) = (Pki::new(), free_port(), Server::slow(3000));
        let tables = format!(
            "tcp = [\"127.0.0.1:{port}\"]\ntls-dir = {:?}\n[host.web]\nuri = \"nbd+unix:///?socket={}\"\nis-this-machine = true\n\
             clients = [\"web\"]\n{}",
            pki.server.text(),
            path("socket").display(),
            server.table("slow", "")
        );
        let proxy = Proxy::start("jobs = 1", &tables);
        Self {
            _host: host,
            disk,
            proxy,
            pki,
            port,
            _server: server,
        }
    }

    fn control(&self) -> PathBuf {
        self.disk.outside().join("control")
    }

    /// The directory of a host with this name.
    fn certified(&self, name: &str) -> TlsDirectory {
        let authority = &self.pki.authority;
        TlsDirectory::trusting(authority).with_client(&authority.issue(Subject::client(name)))
    }

    fn https(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Hands the set over to the proxy at `url`.
    fn start(&self, url: &str, more: &[&str]) -> Running {
        let control = self.control();
        let arguments = [
            "--error-format",
            "json",
            "backup",
            "db",
            "--proxy",
            url,
            "--host",
            "web",
            "--json",
            "--control",
            text(&control),
        ];
        program::start("nbd-export", &[&arguments, more].concat(), Stdio::null())
    }

    fn keep_busy(&self) -> u64 {
        let job = self.proxy.submit(&request("slow", "x", "y")).unwrap();
        self.proxy
            .wait_until(job.id, |job| job.state == JobState::Running);
        job.id
    }

    /// The jobs of the set, once all are there.
    fn handed_over(&self, after: u64) -> Vec<JobReport> {
        let until = Instant::now() + Duration::from_secs(100);
        loop {
            let mut jobs = self.proxy.ask(async |daemon| daemon.jobs().await).unwrap().jobs;
            jobs.retain(|job| job.id > after);
            jobs.sort_by_key(|job| job.id);
            if jobs.len() == VOLUMES.len() {
                return jobs;
            }
            assert!(Instant::now() < until, "not all come: {jobs:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What there is of the volumes, frozen or kept.
    fn listed(&self, which: &str) -> Vec<Value> {
        let control = self.control();
        let listed = program::nbd_export(&["list", "--json", "--control", text(&control)]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let volumes = listed["volumes"].as_array().unwrap().iter();
        volumes
            .flat_map(|volume| volume[which].as_array().unwrap().clone())
            .collect()
    }

    fn kept(&self) -> Vec<String> {
        let kept = self.listed("kept");
        kept.iter()
            .map(|image| image["uuid"].as_str().unwrap().to_owned())
            .collect()
    }

    fn assert_nothing_is_frozen(&self) {
        assert_eq!(self.listed("frozen"), [] as [Value; 0]);
    }

    /// A job for each volume is done, with the image of it.
    fn assert_backed_up(&self, output: &Output) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let jobs = told["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), VOLUMES.len(), "{told}");
        for (job, name) in jobs.iter().zip(VOLUMES) {
            assert_eq!(
                (&job["state"], &job["verified"], &job["request"]["volume"]),
                (&"done".into(), &true.into(), &name.into()),
                "{job}"
            );
            assert_eq!(job["report"]["frozen"], job["request"]["frozen"], "{job}");
            let done = self.proxy.job(job["id"].as_u64().unwrap());
            image::assert_holds(&self.proxy.image(&done), &self.disk.path.join(name));
        }
    }

    /// The manifests of sets that were filed.
    fn manifests(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.proxy.path("images").join("web")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        paths.filter(|path| path.is_file()).collect()
    }

    /// All volumes come back from the one manifest that there is.
    fn assert_restores(&self) {
        let manifests = self.manifests();
        let [manifest] = &manifests[..] else {
            panic!("{manifests:?}");
        };
        program::proxy_client(&["verify", text(manifest)]);
        let restored = self.disk.outside().join("restored");
        program::proxy_client(&["restore", text(manifest), "--output", text(&restored)]);
        for name in VOLUMES {
            assert_eq!(
                digest::of_file(&restored.join(name)),
                digest::of_file(&self.disk.path.join(name)),
                "{name}"
            );
        }
    }
}

#[test]
fn a_set_becomes_a_job_for_each_volume_and_is_thawed_when_all_are_filed() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    needs!("nbdkit");
    let scene = Scene::new();
    let url = scene.proxy.url();
    scene.assert_backed_up(&scene.start(&url, &[]).wait());
    scene.assert_nothing_is_frozen();
    scene.assert_restores();
    let parents = scene.kept();
    assert_eq!(parents.len(), 2, "what was filed is the parent of the next");

    // One of one instant, under one hold that is renewed.
    let busy = scene.keep_busy();
    let backup = scene.start(&url, &["--hold", "12"]);
    let jobs = scene.handed_over(busy);
    std::thread::sleep(Duration::from_secs(15));
    let frozen = scene.listed("frozen");
    assert_eq!(frozen.len(), 2);
    assert_eq!(frozen[0]["set"]["name"], frozen[1]["set"]["name"]);
    // One that comes to nothing: the set is no parent, whatever became of the other.
    let last = jobs.last().unwrap().id;
    scene.proxy.ask(async |daemon| daemon.cancel(last).await).unwrap();
    scene.proxy.ask(async |daemon| daemon.cancel(busy).await).unwrap();
    let output = backup.wait();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error_object(&output)["kind"], "backup");
    assert_eq!(scene.proxy.job(jobs[0].id).state, JobState::Done);
    assert_eq!(scene.manifests().len(), 1, "it is not whole");
    scene.assert_nothing_is_frozen();
    assert_eq!(scene.kept(), parents);

    let busy = scene.keep_busy();
    let backup = scene.start(&url, &[]);
    let jobs = scene.handed_over(busy);
    backup.signal(Signal::SIGINT);
    assert_eq!(error_object(&backup.wait())["kind"], "backup");
    for job in jobs {
        assert_eq!(scene.proxy.job(job.id).state, JobState::Cancelled);
    }
    scene.assert_nothing_is_frozen();
    assert_eq!(scene.kept(), parents);
}

#[test]
fn a_set_is_handed_over_by_https() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    needs!("nbdkit");
    let scene = Scene::new();
    let (url, web) = (scene.https(), scene.certified("web"));
    scene.assert_backed_up(&scene.start(&url, &["--tls-dir", web.text()]).wait());
    scene.assert_nothing_is_frozen();

    // Whoever is left to wait has the certificate too.
    let busy = scene.keep_busy();
    let handed_over = scene.start(&url, &["--tls-dir", web.text(), "--detach"]).wait();
    assert!(handed_over.status.success(), "{handed_over:?}");
    let jobs = scene.handed_over(busy);
    assert_eq!(scene.listed("frozen").len(), 2);
    scene.proxy.ask(async |daemon| daemon.cancel(busy).await).unwrap();
    for job in &jobs {
        assert_eq!(scene.proxy.wait_for_end(job.id).state, JobState::Done);
    }
    let until = Instant::now() + Duration::from_secs(100);
    while !scene.listed("frozen").is_empty() {
        assert!(Instant::now() < until, "it stays frozen");
        std::thread::sleep(Duration::from_millis(50));
    }
    let last = jobs.last().unwrap().id;

    // Another host's certificate, one of another authority, none, and a proxy that is not the one that it says it is.
    let (other, foreign) = (scene.certified("other"), Pki::new());
    let foreign_client = TlsDirectory::trusting(&scene.pki.authority)
        .with_client(&foreign.authority.issue(Subject::client("web")));
    let credulous = TlsDirectory::trusting(&foreign.authority)
        .with_client(&scene.pki.authority.issue(Subject::client("web")));
    for (directory, code) in [
        (Some(&other), 1),
        (Some(&foreign_client), 1),
        (Some(&credulous), 1),
        (None, 2),
    ] {
        let tls = directory.map(|directory| ["--tls-dir", directory.text()]);
        let more = tls.as_ref().map_or(&[][..], |tls| tls);
        let output = scene.start(&url, &[more, &["--hold", "4"]].concat()).wait();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let kind = if code == 1 { "proxy" } else { "usage" };
        assert_eq!(error_object(&output)["kind"], kind, "{output:?}");
        scene.assert_nothing_is_frozen();
    }
    let jobs = scene.proxy.ask(async |daemon| daemon.jobs().await).unwrap().jobs;
    assert!(jobs.iter().all(|job| job.id <= last), "{jobs:?}");
}
