//! What the threads around a guest share: its process, its console, its deadline, and what became of its commands.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::link::Link;

/// Lines of the console that are told when something goes wrong.
const LAST_LINES: usize = 40;

/// Longest wait for a guest to boot, to take a command and to power off: far beyond what a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the module.
pub(super) struct Machine {
    name: String,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    child: Child,
    /// No process of the guest has its console any more, so that there is none.
    ended: bool,
    /// Its deadline ended it.
    late: bool,
    lines: Vec<String>,
    /// Exit statuses of commands that nobody has asked for yet.
    statuses: HashMap<u64, i32>,
}

impl Machine {
    /// Follows the console of a guest that boots, and keeps its deadline.
    pub(super) fn watch(name: &str, mut child: Child, deadline: Duration) -> Arc<Self> {
        let console = child.stdout.take().unwrap();
        let machine = Arc::new(Self {
            name: name.to_owned(),
            state: Mutex::new(State {
                child,
                ended: false,
                late: false,
                lines: Vec::new(),
                statuses: HashMap::new(),
            }),
            changed: Condvar::new(),
        });
        let (follower, watchdog) = (Arc::clone(&machine), Arc::clone(&machine));
        thread::spawn(move || follower.read_console(console));
        thread::spawn(move || watchdog.keep_deadline(deadline));
        machine
    }

    fn read_console(&self, console: impl Read) {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            eprintln!("[{}] {text}", self.name);
            let mut state = self.state();
            if state.lines.len() == LAST_LINES {
                state.lines.remove(0);
            }
            state.lines.push(text);
        }
        self.state().ended = true;
        self.changed.notify_all();
    }

    fn keep_deadline(&self, deadline: Duration) {
        let mut state = self.wait(deadline, |state| state.ended);
        if !state.ended {
            state.late = true;
            state.child.kill().ok();
        }
    }

    /// Waits for the agent's own connection, and takes in the exit statuses that come over it from then on.
    pub(super) fn follow_agent(self: &Arc<Self>, agent: &TcpListener) -> TcpStream {
        let (control, _) = self.accept(agent);
        let stream = control.get_ref().stream();
        let machine = Arc::clone(self);
        thread::spawn(move || {
            for line in control.lines().map_while(Result::ok) {
                let (number, status) = line.split_once(' ').unwrap();
                let (number, status) = (number.parse().unwrap(), status.parse().unwrap());
                machine.state().statuses.insert(number, status);
                machine.changed.notify_all();
            }
        });
        stream
    }

    /// The next connection from the guest, and the process id in its first line. The guest is ended where none comes.
    pub(super) fn accept(self: &Arc<Self>, agent: &TcpListener) -> (BufReader<Link>, u32) {
        agent.set_nonblocking(true).unwrap();
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match agent.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if self.has_ended() || Instant::now() > until {
                self.end();
                panic!("the guest does not answer\n{}", self.told());
            }
            thread::sleep(Duration::from_millis(5));
        };
        let mut link = BufReader::new(Link::new(stream, Arc::clone(self)));
        let mut line = String::new();
        let read = link.read_line(&mut line);
        match line.trim_end().parse() {
            Ok(pid) => (link, pid),
            Err(_) => panic!("{line:?} is no process id ({read:?})\n{}", self.told()),
        }
    }

    /// The exit status of a command. There is none where the guest has ended.
    pub(super) fn await_status(&self, number: u64) -> Option<i32> {
        let over = |state: &State| state.ended || state.statuses.contains_key(&number);
        let mut state = self.wait(Duration::MAX, over);
        state.statuses.remove(&number)
    }

    /// Waits for a guest that was told to power off.
    pub(super) fn wait_for_end(&self) {
        let state = self.wait(PATIENCE, |state| state.ended);
        assert!(state.ended, "the guest does not power off");
    }

    /// Ends the guest without warning, and waits until nothing of it is left.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.child.kill().ok();
        state.child.wait().ok();
        drop(state);
        drop(self.wait(PATIENCE, |state| state.ended));
    }

    /// Whether no process of the guest is left.
    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }

    pub(super) fn pid(&self) -> u32 {
        self.state().child.id()
    }

    /// What the console said last.
    pub(super) fn told(&self) -> String {
        let state = self.state();
        let late = if state.late {
            " (its deadline has passed)"
        } else {
            ""
        };
        format!("guest {}{late}:\n{}", self.name, state.lines.join("\n"))
    }

    fn wait(&self, time: Duration, over: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        self.changed
            .wait_timeout_while(self.state(), time, |state| !over(state))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// A test that failed under the lock ends the guest all the same.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
