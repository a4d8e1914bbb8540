//! Running a command of LVM's, with a deadline.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::LvmError;
use crate::limits::{
    LVM_CHANGE_PATIENCE, LVM_END_PATIENCE, LVM_OUTPUT_MAX, LVM_QUERY_PATIENCE, LVM_STDERR_TOLD,
};
use crate::processes;

/// Where distributions install it. Not searched for in `PATH`: whoever sets that would choose what root runs.
const PLACES: [&str; 4] = ["/usr/sbin/lvm", "/sbin/lvm", "/usr/bin/lvm", "/bin/lvm"];

/// Longest time between two looks at a command that runs.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(20);

/// LVM's commands.
#[derive(Clone, Debug)]
pub struct Lvm {
    program: PathBuf,
}

/// What becomes of a command that does not end in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Late {
    /// It only asks: it is killed.
    Kill,
    /// It changes something: it is asked to end, and left running if it does not.
    AskToEnd,
}

impl Lvm {
    /// LVM as it is installed here.
    ///
    /// # Errors
    /// [`LvmError::Missing`].
    pub fn find() -> Result<Self, LvmError> {
        let found = PLACES.iter().map(PathBuf::from).find(|path| path.exists());
        found.map(|program| Self { program }).ok_or(LvmError::Missing)
    }

    /// Another program in the place of LVM's.
    #[cfg(test)]
    pub(super) fn at(program: PathBuf) -> Self {
        Self { program }
    }

    /// Runs a command that changes nothing, and gives what it printed.
    pub(super) fn query(&self, arguments: &[&str]) -> Result<Vec<u8>, LvmError> {
        self.run(arguments, LVM_QUERY_PATIENCE, Late::Kill)
    }

    /// Runs a command that changes something.
    pub(crate) fn change(&self, arguments: &[&str]) -> Result<(), LvmError> {
        self.run(arguments, LVM_CHANGE_PATIENCE, Late::AskToEnd).map(drop)
    }

    fn run(&self, arguments: &[&str], patience: Duration, late: Late) -> Result<Vec<u8>, LvmError> {
        let line = command_line(arguments);
        let not_run = |why| LvmError::Run {
            command: line.clone(),
            why,
        };
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("LC_ALL", "C")
            // What this process has open is none of LVM's business; it would complain of each.
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at a terminal is for the agent, which ends in an orderly way.
            .process_group(0);
        let mut child = processes::spawn(&mut command).map_err(not_run)?;
        let stdout = Drain::start(child.stdout.take()).map_err(not_run)?;
        let stderr = Drain::start(child.stderr.take()).map_err(not_run)?;
        let Some(status) = wait(&mut child, patience).map_err(not_run)? else {
            return Err(self.end(child, line, patience, late, &stderr));
        };
        let (said, printed) = (told(&stderr.finish()), stdout.finish());
        if !status.success() {
            return Err(LvmError::Failed {
                command: line,
                status,
                stderr: said,
            });
        }
        if !said.is_empty() {
            tracing::info!(command = line, stderr = said, "LVM says");
        }
        Ok(printed)
    }

    /// A command that is too late.
    fn end(
        &self,
        mut child: Child,
        command: String,
        patience: Duration,
        late: Late,
        stderr: &Drain,
    ) -> LvmError {
        let ended = match late {
            Late::Kill => child.kill().and_then(|()| child.wait()).map(Some),
            Late::AskToEnd => ask_to_end(&child).and_then(|()| wait(&mut child, LVM_END_PATIENCE)),
        };
        let process = child.id();
        match ended {
            Ok(Some(_)) => LvmError::Deadline {
                command,
                patience,
                stderr: told(&stderr.finish()),
            },
            Ok(None) => {
                // Somebody has to take notice of its end, or it stays in the process table.
                let reaped = thread::Builder::new().spawn(move || child.wait());
                drop(reaped);
                LvmError::LeftRunning {
                    command,
                    process,
                    stderr: told(&stderr.so_far()),
                }
            }
            Err(why) => LvmError::Run { command, why },
        }
    }
}

fn command_line(arguments: &[&str]) -> String {
    format!("lvm {}", arguments.join(" "))
}

/// SIGTERM to a child that was not waited for yet, so the number is still its own.
fn ask_to_end(child: &Child) -> io::Result<()> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?)
}

/// How the child ended, if it did within `patience`.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LOOK_AGAIN_MAX);
    }
}

/// What LVM said, for one line of a log.
fn told(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(&stderr[..stderr.len().min(LVM_STDERR_TOLD)]);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join("; ")
}

/// What comes out of a pipe, collected so that the child never waits for us.
struct Drain {
    collected: Arc<Mutex<Vec<u8>>>,
    ended: thread::JoinHandle<()>,
}

impl Drain {
    fn start(pipe: Option<impl Read + Send + 'static>) -> io::Result<Self> {
        let mut pipe = pipe.ok_or(io::ErrorKind::BrokenPipe)?;
        let collected = Arc::new(Mutex::new(Vec::new()));
        let ended = thread::Builder::new().spawn({
            let collected = Arc::clone(&collected);
            move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
                    // Beyond the limit it is read and forgotten.
                    let room = LVM_OUTPUT_MAX.saturating_sub(collected.len()).min(count);
                    collected.extend_from_slice(&buffer[..room]);
                }
            }
        })?;
        Ok(Self { collected, ended })
    }

    fn so_far(&self) -> Vec<u8> {
        self.collected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// All of it, once the child has ended. A daemon that it started may hold the pipe open: that is not waited for.
    fn finish(&self) -> Vec<u8> {
        let deadline = Instant::now() + LVM_END_PATIENCE;
        while !self.ended.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.so_far()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that runs `script`.
    fn fake(dir: &tempfile::TempDir, script: &str) -> Lvm {
        let path = dir.path().join("lvm");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Lvm::at(path)
    }

    #[test]
    fn every_argument_is_one_argument_and_the_language_is_c() {
        let dir = tempfile::tempdir().unwrap();
        let lvm = fake(&dir, "echo \"$LC_ALL $# $2\"; cat");
        let printed = lvm.query(&["lvs", "a b;$(false)"]).unwrap();
        assert_eq!(printed, b"C 2 a b;$(false)\n");
    }

    #[test]
    fn what_a_failed_command_said_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let lvm = fake(&dir, "echo '  one' >&2; echo two >&2; exit 5");
        let Err(error @ LvmError::Failed { .. }) = lvm.change(&["lvremove", "vg/x"]) else {
            panic!("it succeeded")
        };
        let text = error.to_string();
        assert!(
            text.contains("lvm lvremove vg/x") && text.contains("one; two"),
            "{text}"
        );
    }

    #[test]
    fn much_output_blocks_nobody_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let lvm = fake(&dir, "head -c 40000000 /dev/zero; head -c 1000000 /dev/zero >&2");
        assert_eq!(lvm.query(&["lvs"]).unwrap().len(), LVM_OUTPUT_MAX);
    }

    #[test]
    fn a_question_that_gets_no_answer_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let lvm = fake(&dir, "trap '' TERM; echo waiting >&2; exec sleep 60");
        let begun = Instant::now();
        let answer = lvm.run(&["lvs"], Duration::from_secs(4), Late::Kill);
        let Err(LvmError::Deadline { stderr, .. }) = answer else {
            panic!("{answer:?}")
        };
        assert!(
            stderr == "waiting" && begun.elapsed() < Duration::from_secs(30),
            "{stderr}"
        );
    }

    #[test]
    fn a_change_is_asked_to_end_and_never_killed() {
        let dir = tempfile::tempdir().unwrap();
        let gives_in = fake(&dir, "exec sleep 60");
        let answer = gives_in.run(&["lvcreate"], Duration::from_millis(100), Late::AskToEnd);
        assert!(matches!(answer, Err(LvmError::Deadline { .. })), "{answer:?}");

        let mark = dir.path().join("finished");
        let script = format!("trap '' TERM; sleep 14; touch {}", mark.display());
        let goes_on = fake(&dir, &script);
        let answer = goes_on.run(&["lvcreate"], Duration::from_secs(4), Late::AskToEnd);
        assert!(matches!(answer, Err(LvmError::LeftRunning { .. })), "{answer:?}");
        let deadline = Instant::now() + Duration::from_secs(100);
        while !mark.exists() {
            assert!(Instant::now() < deadline, "it was killed");
            thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lvm = fake(&dir, "sleep 20 & echo done");
        let begun = Instant::now();
        assert_eq!(lvm.query(&["lvs"]).unwrap(), b"done\n");
        assert!(begun.elapsed() < Duration::from_secs(19));
    }
}
