//! The agent's side: starts a guardian, gives orders, and does without it where it is gone.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use volmap::processes;
use volmap::set::FileSystems;
use volmap::sys::file_system;

use super::super::leftovers::thaw_file_systems;
use super::orders::{Answer, Occasion, Order, Outcome};
use crate::config::{Hooks, Stage};
use crate::error::{Error, ErrorKind};

/// For how long file systems may be frozen. Ten seconds is what writers, watchdogs and clusters commonly bear, and far more than a
/// freeze takes; what takes longer is stuck.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

/// What a guardian gets on top of its own deadlines before it is taken for dead.
const SLACK: Duration = Duration::from_secs(5);

/// What it gets to begin: a process may take long to do so on a host that has much to do. Nothing stands still for that yet.
const BEGIN_PATIENCE: Duration = Duration::from_secs(30);

/// A guardian, for one freeze and what comes of it. Dropped without an end, it does as if the agent had died.
pub(in crate::host) struct Guardian {
    child: Option<Child>,
    orders: Option<ChildStdin>,
    answers: Receiver<Answer>,
    hooks: Hooks,
    /// What it froze: to be thawed from here, should it die.
    frozen: Vec<File>,
    state_dir: Option<PathBuf>,
}

/// Why an order was not carried out.
enum Trouble {
    /// The guardian says so.
    Failed(String),
    /// It does not answer.
    Silent,
}

impl Guardian {
    /// Starts one.
    ///
    /// # Errors
    /// [`ErrorKind::System`].
    pub(in crate::host) fn start(
        hooks: &Hooks,
        state_dir: Option<&Path>,
        occasion: &Occasion,
    ) -> Result<Self, Error> {
        let failed = |error| {
            Error::caused(
                ErrorKind::System,
                "the guardian of a freeze cannot be started",
                error,
            )
        };
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What ends the agent's group at a terminal must not end what cleans up after it.
            .process_group(0);
        let mut child = processes::spawn(&mut command).map_err(failed)?;
        let orders = child.stdin.take();
        let (to, answers) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let Ok(answer) = serde_json::from_str(&line) else {
                        return;
                    };
                    if to.send(answer).is_err() {
                        return;
                    }
                }
            });
        }
        let mut guardian = Self {
            child: Some(child),
            orders,
            answers,
            hooks: hooks.clone(),
            frozen: Vec::new(),
            state_dir: state_dir.map(Path::to_owned),
        };
        let begin = Order::Begin {
            hooks: hooks.clone(),
            occasion: occasion.clone(),
            state_dir: state_dir.map(|path| path.as_os_str().as_bytes().to_owned()),
        };
        guardian.ask(&begin, BEGIN_PATIENCE).map_err(|trouble| {
            Error::new(
                ErrorKind::System,
                format!("the guardian of a freeze: {}", trouble.why()),
            )
        })?;
        Ok(guardian)
    }

    /// Runs the hook of a stage, if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Hook`], with what it said.
    pub(in crate::host) fn run(&mut self, stage: Stage, occasion: &Occasion) -> Result<(), Error> {
        let order = Order::Run {
            stage,
            occasion: occasion.clone(),
        };
        self.ask(&order, self.hooks.timeout + SLACK)
            .map_err(|trouble| Error::new(ErrorKind::Hook, trouble.why()))
    }

    /// Ends it; the post-thaw hook runs, if any hook was to run.
    ///
    /// # Errors
    /// [`ErrorKind::Hook`].
    pub(in crate::host) fn end(mut self, outcome: Outcome, occasion: Occasion) -> Result<(), Error> {
        self.ask(&Order::End { outcome, occasion }, self.hooks.timeout + SLACK)
            .map_err(|trouble| Error::new(ErrorKind::Hook, trouble.why()))
    }

    fn ask(&mut self, order: &Order, patience: Duration) -> Result<(), Trouble> {
        let sent = serde_json::to_vec(order).ok().and_then(|mut line| {
            line.push(b'\n');
            self.orders.as_mut()?.write_all(&line).ok()
        });
        if sent.is_none() {
            return Err(Trouble::Silent);
        }
        match self.answers.recv_timeout(patience) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(why)) => Err(Trouble::Failed(why)),
            Err(_) => Err(Trouble::Silent),
        }
    }

    /// The guardian is dead or hangs: what it froze is thawed from here.
    fn thaw_without_it(&mut self) -> String {
        if let Some(child) = &mut self.child {
            // Unless it is dead already.
            let _ = child.kill();
        }
        for file in self.frozen.drain(..) {
            // Those that it did not come to are not frozen.
            let _ = file_system::thaw(&file);
        }
        Trouble::Silent.why()
    }
}

impl Trouble {
    fn why(self) -> String {
        match self {
            Self::Failed(why) => why,
            Self::Silent => "the guardian does not answer: was it killed?".to_owned(),
        }
    }
}

impl FileSystems for Guardian {
    fn freeze(&mut self, on: &[&File]) -> Result<(), String> {
        let clones = on.iter().map(|file| file.try_clone()).collect::<Result<_, _>>();
        self.frozen = clones.map_err(|error| error.to_string())?;
        // By descriptor: this very file system, whatever is mounted over its path by now.
        let path = |file: &&File| PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        let order = Order::FreezeFileSystems {
            on: on.iter().map(path).collect(),
            deadline: FREEZE_DEADLINE,
        };
        self.ask(&order, FREEZE_DEADLINE + SLACK)
            .map_err(|trouble| match trouble {
                Trouble::Failed(why) => why,
                Trouble::Silent => self.thaw_without_it(),
            })
    }

    fn thaw(&mut self) -> Result<(), String> {
        match self.ask(&Order::ThawFileSystems, SLACK) {
            Ok(()) => {
                self.frozen.clear();
                Ok(())
            }
            Err(Trouble::Failed(why)) => Err(why),
            Err(Trouble::Silent) => Err(self.thaw_without_it()),
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(mut child) = self.child.take() {
            let state_dir = self.state_dir.take();
            // It may have a hook to run, which nobody waits for; but its process is not to stay as a zombie.
            thread::spawn(move || {
                let ended = child.wait();
                // Should it have been killed: a freeze that came to its end only then, and what it wrote down.
                if let Some(Err(error)) = state_dir.map(|state| thaw_file_systems(&state)) {
                    tracing::warn!(%error, "what a guardian wrote down cannot be crossed out");
                }
                ended
            });
        }
    }
}
