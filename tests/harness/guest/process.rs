//! A process in a guest.

use std::io::{BufRead, BufReader, Read};
use std::net::Shutdown;
use std::sync::Arc;

use super::link::Link;
use super::machine::Machine;

/// What a process did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// Its exit status, as a shell counts.
    pub status: i32,
    /// What it wrote to stdout and nobody had read. Its stderr is the guest's console, and with it the test's stderr.
    pub stdout: String,
}

/// A process in a guest, started by [`super::Guest::start`]. It goes on when this is dropped.
pub struct Process {
    /// Its process id in the guest.
    pub pid: u32,
    machine: Arc<Machine>,
    number: u64,
    script: String,
    stdout: BufReader<Link>,
}

impl Process {
    pub(super) fn new(
        machine: Arc<Machine>,
        number: u64,
        pid: u32,
        script: &str,
        stdout: BufReader<Link>,
    ) -> Self {
        // Its stdin has nothing in it.
        stdout.get_ref().stream().shutdown(Shutdown::Write).ok();
        Self {
            pid,
            machine,
            number,
            script: script.to_owned(),
            stdout,
        }
    }

    /// The next line of its stdout; `None` at the end.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) => panic!("{}: {error}\n{}", self.script, self.machine.told()),
        }
    }

    /// The lines of its stdout before one that has to come, which is taken too.
    pub fn lines_before(&mut self, last: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.line() {
                Some(line) if line == last => return lines,
                Some(line) => lines.push(line),
                None => panic!(
                    "{} ended before {last}: {lines:?}\n{}",
                    self.script,
                    self.machine.told()
                ),
            }
        }
    }

    /// Waits until it has ended, and everything else that has its stdout.
    pub fn wait(mut self) -> Output {
        let mut stdout = Vec::new();
        let read = self.stdout.read_to_end(&mut stdout);
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        match self.machine.await_status(self.number) {
            Some(status) if read.is_ok() => Output { status, stdout },
            _ => panic!("{}\n{stdout}\n{}", self.script, self.machine.told()),
        }
    }
}
