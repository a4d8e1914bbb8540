//! The two programs as processes.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Where a program of the workspace was built; `tests/run` builds it first.
pub fn built(name: &str) -> PathBuf {
    let suites = std::env::current_exe().unwrap();
    let path = suites.parent().unwrap().parent().unwrap().join(name);
    assert!(
        path.exists(),
        "{} is missing: cargo build --workspace --bins",
        path.display()
    );
    path
}

/// Where agents write down what a crash would leave behind, unless a test says otherwise: not where those of the machine do.
fn state_directory() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/scratch-state")
}

/// `nbd-export serve`, or `proxy-client serve`, ready; killed when dropped.
pub struct Host {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The URI of each export, in the order printed.
    pub uris: Vec<String>,
}

impl Host {
    /// Starts `nbd-export serve` with arguments, and waits for READY.
    pub fn serve(arguments: &[&str]) -> Self {
        Self::try_serve(arguments).unwrap_or_else(|status| panic!("nbd-export serve {arguments:?}: {status}"))
    }

    /// The same, where it may fail to start.
    pub fn try_serve(arguments: &[&str]) -> Result<Self, ExitStatus> {
        Self::start("nbd-export", arguments)
    }

    /// Starts `proxy-client serve` with arguments, and waits for READY.
    pub fn serve_images(arguments: &[&str]) -> Self {
        let started = Self::start("proxy-client", arguments);
        started.unwrap_or_else(|status| panic!("proxy-client serve {arguments:?}: {status}"))
    }

    fn start(program: &str, arguments: &[&str]) -> Result<Self, ExitStatus> {
        let mut child = Command::new(built(program))
            .arg("serve")
            .args(arguments)
            .env("STATE_DIRECTORY", state_directory())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut uris = Vec::new();
        loop {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                return Err(child.wait().unwrap());
            }
            match line.trim_end() {
                "READY" => return Ok(Self { child, stdout, uris }),
                uri => uris.push(uri.to_owned()),
            }
        }
    }

    /// The URI of the export of that name.
    pub fn uri(&self, export: &str) -> &str {
        let named = |uri: &&String| {
            uri.split('?')
                .next()
                .is_some_and(|path| path.ends_with(&format!("/{export}")))
        };
        self.uris
            .iter()
            .find(named)
            .unwrap_or_else(|| panic!("no export {export} in {:?}", self.uris))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits.
    pub fn terminate(self) -> ExitStatus {
        self.end_by(nix::sys::signal::Signal::SIGTERM)
    }

    /// Sends it a signal that has to end it, and waits.
    pub fn end_by(mut self, signal: nix::sys::signal::Signal) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut rest = String::new();
                self.stdout.read_to_string(&mut rest).unwrap();
                assert_eq!(rest, "", "nothing is printed after READY");
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it did not end within 30 s of {signal}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs a program of the workspace to its end.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    run_fed(name, arguments, Stdio::null())
}

/// Runs a program of the workspace to its end, with something on its stdin.
pub fn run_fed(name: &str, arguments: &[&str], stdin: impl Into<Stdio>) -> Output {
    start(name, arguments, stdin).wait()
}

/// Starts a program of the workspace. Every run goes through [`Running::wait`], which holds it to what every run owes.
pub fn start(name: &str, arguments: &[&str], stdin: impl Into<Stdio>) -> Running {
    let child = Command::new(built(name))
        .args(arguments)
        .env("STATE_DIRECTORY", state_directory())
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running {
        child: Some(child),
        command: format!("{name} {arguments:?}"),
    }
}

/// A program that runs; killed when dropped.
pub struct Running {
    child: Option<Child>,
    command: String,
}

impl Running {
    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    /// Its stdin, if that is a pipe.
    pub fn take_stdin(&mut self) -> std::process::ChildStdin {
        self.child.as_mut().unwrap().stdin.take().unwrap()
    }

    /// Waits until it hears a signal: by the mask of those that it catches (proc_pid_status(5)), whose lowest bit is signal 1.
    pub fn wait_until_it_hears(&mut self, signal: nix::sys::signal::Signal) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = format!("/proc/{}/status", self.child.as_ref().unwrap().id());
        let hears = || {
            let status = std::fs::read_to_string(&status).unwrap();
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("SigCgt:"))
                .unwrap();
            u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal as i32 - 1) & 1 == 1
        };
        while !hears() {
            assert!(
                Instant::now() < deadline,
                "{} does not catch {signal}",
                self.command
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Nobody reads any more what it says.
    pub fn close_stderr(&mut self) {
        drop(self.child.as_mut().unwrap().stderr.take());
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Waits until it has made a file.
    pub fn wait_for(&mut self, path: &std::path::Path) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !path.exists() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let late = Instant::now() > deadline;
            assert!(
                ended.is_none() && !late,
                "{} never came ({ended:?})",
                path.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until there is something on its stdout, a pipe that nobody has read yet.
    pub fn wait_until_stdout_waits(&mut self) {
        use std::os::fd::AsFd;

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

        let stdout = self.child.as_ref().unwrap().stdout.as_ref().unwrap();
        let mut descriptors = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut descriptors, PollTimeout::from(60_000_u16)).unwrap();
        assert_eq!(ready, 1, "{}: nothing on its stdout", self.command);
    }

    /// Waits for its end. Whatever it was asked to do, it must not panic, and must not colour what goes to a pipe.
    pub fn wait(mut self) -> Output {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked at"), "{}:\n{stderr}", self.command);
        assert!(
            !stderr.contains('\x1b'),
            "{} colours a pipe:\n{stderr}",
            self.command
        );
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Runs `nbd-export`, which must succeed, and gives back its stdout.
pub fn nbd_export(arguments: &[&str]) -> String {
    succeed("nbd-export", arguments)
}

/// Runs `proxy-client`, which must succeed, and gives back its stdout.
pub fn proxy_client(arguments: &[&str]) -> String {
    succeed("proxy-client", arguments)
}

fn succeed(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}\n{stderr}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// `proxy-client backup … --json` of a host that runs on this machine, which must succeed: its report.
pub fn backup(arguments: &[&str]) -> serde_json::Value {
    let stdout = proxy_client(&[&["backup", "--json", "--host-is-this-machine"], arguments].concat());
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

/// A command that must fail with an exit code: its error object.
pub fn fails(name: &str, code: i32, arguments: &[&str]) -> serde_json::Value {
    let output = run(name, &[&["--error-format", "json"], arguments].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{name} {arguments:?}\n{stderr}");
    let error = error_object(&output);
    assert_eq!(error["exit_code"], code, "{error}");
    assert!(
        error["kind"].is_string() && error["message"].is_string(),
        "{error}"
    );
    error
}

/// The error object that a command with `--error-format json` left on stderr.
pub fn error_object(output: &Output) -> serde_json::Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stderr.lines().rfind(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{}, no error object: {stderr}", output.status));
    serde_json::from_str(line).unwrap()
}
