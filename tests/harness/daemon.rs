//! `proxy-client daemon` as a process, and those who talk to it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nbd_export::proxy::{JobReport, JobRequest, ProxyClient, ProxyError, ProxyUrl};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::disk::{Scratch, scratch};
use crate::program::built;

/// A directory for a daemon: its configuration, queue, repository and socket. Daemons come and go.
pub struct Proxy {
    directory: Scratch,
    child: Option<Child>,
    runtime: Runtime,
}

impl Proxy {
    /// With tables beside `[listen]`, and lines before all tables. Nothing runs yet.
    pub fn new(lines: &str, tables: &str) -> Self {
        let proxy = Self {
            directory: scratch(),
            child: None,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        };
        fs::create_dir(proxy.path("images")).unwrap();
        proxy.reconfigure(lines, tables);
        proxy
    }

    /// The same, running.
    pub fn start(lines: &str, tables: &str) -> Self {
        let mut proxy = Self::new(lines, tables);
        proxy.begin();
        proxy
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// An image, by its name in the repository.
    pub fn image(&self, job: &JobReport) -> PathBuf {
        self.path("images").join(job.image.as_deref().unwrap())
    }

    /// Starts a daemon, and waits until it answers.
    pub fn begin(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let child = Command::new(built("proxy-client"))
            .args(["--log-format", "json", "daemon", "--config"])
            .arg(self.path("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(self.path("control")).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            assert!(Instant::now() < deadline, "it does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Submits a job, and has the kernel kill the daemon at byte `limit` of its image, as abruptly as `kill -9` does.
    pub fn submit_and_be_killed_at(&mut self, request: &JobRequest, limit: u64) -> u64 {
        let pid = self.child.as_ref().unwrap().id();
        let set = Command::new("prlimit")
            .args(["--core=0", &format!("--fsize={limit}"), &format!("--pid={pid}")])
            .status();
        assert!(set.unwrap().success());
        let job = self.submit(request).unwrap().id;
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().ok();
                panic!("it has not written {limit} bytes: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        job
    }

    /// Gives it other tables, for the next start.
    pub fn reconfigure(&self, lines: &str, tables: &str) {
        let text = format!(
            "repository = {:?}\nstate = {:?}\n{lines}\n[listen]\nsocket = {:?}\n{tables}\n",
            self.path("images"),
            self.path("jobs.redb"),
            self.path("control")
        );
        fs::write(self.path("config.toml"), text).unwrap();
    }

    /// What it logged, all of them one after the other.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to end, and waits.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        child.wait().unwrap()
    }

    /// Whether it runs.
    pub fn lives(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// The URL of its socket.
    pub fn url(&self) -> String {
        format!("unix://{}", self.path("control").display())
    }

    /// Runs a conversation with it through its socket.
    pub fn ask<T>(&self, talk: impl AsyncFnOnce(&ProxyClient) -> T) -> T {
        let url: ProxyUrl = self.url().parse().unwrap();
        self.ask_at(url, None, talk)
    }

    /// The same, from elsewhere.
    pub fn ask_at<T>(
        &self,
        url: ProxyUrl,
        tls: Option<&Path>,
        talk: impl AsyncFnOnce(&ProxyClient) -> T,
    ) -> T {
        let client = ProxyClient::new(url, tls).unwrap();
        self.runtime.block_on(talk(&client))
    }

    /// Submits a job.
    pub fn submit(&self, request: &JobRequest) -> Result<JobReport, ProxyError> {
        self.ask(async |daemon| daemon.submit(request).await)
    }

    /// A job as it is.
    pub fn job(&self, id: u64) -> JobReport {
        self.ask(async |daemon| daemon.job(id).await).unwrap()
    }

    /// Waits until a job is as it should be.
    pub fn wait_until(&self, id: u64, is: impl Fn(&JobReport) -> bool) -> JobReport {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let job = self.job(id);
            if is(&job) {
                return job;
            }
            assert!(
                Instant::now() < deadline && !job.state.is_final(),
                "{job:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a job has come to its end.
    pub fn wait_for_end(&self, id: u64) -> JobReport {
        self.wait_until(id, |job| job.state.is_final())
    }

    /// Sends bytes, and gives back what is answered until the connection ends.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path("control")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A daemon that has read enough hangs up in the midst of it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A request for a backup of an export.
pub fn request(host: &str, export: &str, volume: &str) -> JobRequest {
    JobRequest {
        key: Uuid::new_v4(),
        host: host.to_owned(),
        export: export.to_owned(),
        volume: volume.to_owned(),
        frozen: None,
        require_direct: None,
        audit: None,
    }
}
