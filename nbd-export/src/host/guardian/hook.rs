//! A command that is running, with a deadline.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::orders::Occasion;
use crate::config::Stage;

/// What is kept of what a hook says on standard error: its last words are those that count.
const WORDS_MAX: usize = 4096;

/// Time for what a hook said to arrive after it ended. Something that it left running may hold the pipe open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Time for a process to go that was killed. One that hangs in a dead disk does not.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// A hook that runs.
pub(super) struct RunningHook {
    stage: Stage,
    group: Pid,
    ended: Receiver<std::io::Result<ExitStatus>>,
    /// The last of what it said.
    said: Arc<Mutex<Vec<u8>>>,
    /// Tells that it will say no more.
    said_all: Receiver<()>,
    deadline: Instant,
    timeout: Duration,
}

/// How it stands with a hook.
pub(super) enum Progress {
    Running,
    Ended(Result<(), String>),
}

impl RunningHook {
    /// Starts a command in a process group of its own. `ended` is called on the end of it.
    pub(super) fn start(
        stage: Stage,
        command: &str,
        occasion: &Occasion,
        outcome: Option<&str>,
        timeout: Duration,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the {} hook cannot be started: {error}", stage.name());
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", command])
            .env("NBD_EXPORT_STAGE", stage.name())
            .env("NBD_EXPORT_SET", occasion.set.as_deref().unwrap_or_default())
            .env("NBD_EXPORT_VOLUMES", occasion.volumes.join(" "))
            .env("NBD_EXPORT_FROZEN", occasion.frozen.join(" "))
            .env("NBD_EXPORT_OUTCOME", outcome.unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = shell.spawn().map_err(failed)?;
        let group = Pid::from_raw(i32::try_from(child.id()).map_err(|error| error.to_string())?);
        let said = Arc::default();
        let (said_all_to, said_all) = channel();
        let (ended_to, ended) = channel();
        if let Some(stderr) = child.stderr.take() {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                listen(stderr, &said);
                // Nobody may be there to hear it.
                let _ = said_all_to.send(());
            });
        }
        thread::spawn(move || {
            wait(child, &ended_to);
            on_end();
        });
        Ok(Self {
            stage,
            group,
            ended,
            said,
            said_all,
            deadline: Instant::now() + timeout,
            timeout,
        })
    }

    /// When it has to have ended.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Looks how it stands, and kills it where its time is over.
    pub(super) fn look(&self) -> Progress {
        let name = self.stage.name();
        match self.ended.try_recv() {
            Ok(Ok(status)) if status.success() => Progress::Ended(Ok(())),
            Ok(Ok(status)) => {
                let how = match (status.code(), status.signal()) {
                    (Some(code), _) => format!("exit code {code}"),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => status.to_string(),
                };
                Progress::Ended(Err(format!("the {name} hook failed ({how}){}", self.words())))
            }
            Ok(Err(error)) => Progress::Ended(Err(format!("the {name} hook: {error}"))),
            Err(_) if Instant::now() < self.deadline => Progress::Running,
            Err(_) => {
                self.kill();
                let seconds = self.timeout.as_secs();
                Progress::Ended(Err(format!(
                    "the {name} hook did not end in {seconds} s (--hook-timeout) and was killed{}",
                    self.words()
                )))
            }
        }
    }

    /// Ends it, with everything that it started and that is still of its group.
    pub(super) fn kill(&self) {
        if self.ended.try_recv().is_ok() {
            // The group may be another's by now.
            return;
        }
        let _ = killpg(self.group, Signal::SIGKILL);
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(KILL_PATIENCE) {
            tracing::error!(stage = self.stage.name(), "a hook that was killed does not end");
        }
    }

    /// `: what it said`, or nothing.
    fn words(&self) -> String {
        let _ = self.said_all.recv_timeout(LAST_WORDS);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match String::from_utf8_lossy(&said).trim() {
            "" => String::new(),
            words => format!(": {words}"),
        }
    }
}

/// Reads to the end, which may come long after the hook's own: whoever it left behind must not get SIGPIPE.
fn listen(mut stderr: ChildStderr, said: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(&buffer[..count]);
        let excess = said.len().saturating_sub(WORDS_MAX);
        said.drain(..excess);
    }
}

fn wait(mut child: Child, to: &Sender<std::io::Result<ExitStatus>>) {
    // Nobody may be there to hear it.
    let _ = to.send(child.wait());
}
