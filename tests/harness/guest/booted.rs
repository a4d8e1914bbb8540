//! A guest, as a test has it.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::machine::Machine;
use super::process::{Output, Process};
use crate::disk::Scratch;

/// What a [`super::Rig`] boots a guest with.
pub(super) struct Boot<'a> {
    /// What boots it, in the directory of this package.
    pub(super) script: &'a str,
    pub(super) name: &'a str,
    pub(super) address: String,
    pub(super) directory: &'a Path,
    pub(super) memory: u32,
    pub(super) arguments: Vec<String>,
    pub(super) agent: TcpListener,
    pub(super) deadline: Duration,
    pub(super) keep: Arc<Scratch>,
}

/// A running guest; ended when dropped. Any thread may use it.
pub struct Guest {
    /// Its address in the rig's network.
    pub address: String,
    /// A directory that is `/run/share` in the guest. A file is complete outside when the guest has closed it.
    pub share: PathBuf,
    machine: Arc<Machine>,
    control: Mutex<Control>,
    // The disks are in it.
    _keep: Arc<Scratch>,
}

/// The way to the agent in the guest (`tests/rig/guest.sh`).
struct Control {
    stream: TcpStream,
    agent: TcpListener,
    commands: u64,
}

impl Guest {
    pub(super) fn boot(boot: Boot) -> Self {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(boot.script);
        let child = Command::new(script)
            .arg(boot.directory)
            .args(&boot.arguments)
            .env("RIG_MEMORY", format!("{}M", boot.memory))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let machine = Machine::watch(boot.name, child, boot.deadline);
        let stream = machine.follow_agent(&boot.agent);
        Self {
            address: boot.address,
            share: boot.directory.join("share"),
            machine,
            control: Mutex::new(Control {
                stream,
                agent: boot.agent,
                commands: 0,
            }),
            _keep: boot.keep,
        }
    }

    /// Starts a bash script in the guest, beside those that run. A daemon is best started as `exec nbd-export …`, so that the
    /// process is the daemon itself.
    pub fn start(&self, script: &str) -> Process {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.commands += 1;
        let number = control.commands;
        fs::write(self.share.join(format!("{number}.sh")), script).unwrap();
        writeln!(control.stream, "{number}").unwrap();
        let (stdout, pid) = self.machine.accept(&control.agent);
        Process::new(Arc::clone(&self.machine), number, pid, script, stdout)
    }

    /// Runs a bash script to its end, and to the end of whatever else has its stdout.
    pub fn try_run(&self, script: &str) -> Output {
        self.start(script).wait()
    }

    /// Runs a bash script in which every step has to succeed, and gives back its stdout.
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(&format!("set -euo pipefail\n{script}"));
        let stdout = &output.stdout;
        assert_eq!(output.status, 0, "{script}\n{stdout}\n{}", self.machine.told());
        output.stdout
    }

    /// Starts `nbd-export serve` with arguments, and waits for READY. Gives the URIs, too.
    pub fn serve(&self, arguments: &str) -> (Process, Vec<String>) {
        let mut process = self.start(&format!("exec nbd-export serve {arguments}"));
        let uris = process.lines_before("READY");
        (process, uris)
    }

    /// Powers it off in order, and waits for its end.
    pub fn shut_down(self) {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        // The agent ends with its connection.
        control.stream.shutdown(Shutdown::Both).ok();
        drop(control);
        self.machine.wait_for_end();
    }

    /// The process, outside, with which all of the guest ends.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.machine.end();
    }
}
