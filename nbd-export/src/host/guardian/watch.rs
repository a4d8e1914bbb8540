//! The guardian's own life: orders in, answers out, and an end that leaves nothing held.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::hook::{Progress, RunningHook};
use super::orders::{Answer, Occasion, Order, Outcome};
use super::standstill::Standstill;
use crate::config::{Hooks, Stage};

/// What the guardian waits for.
enum Event {
    Order(Order),
    /// The agent is gone, or talks nonsense, which no agent of this version does.
    AgentGone,
    /// A hook ended.
    HookEnded,
}

struct Watch<'o> {
    events: Receiver<Event>,
    /// For the threads of hooks.
    wake: Sender<Event>,
    /// Orders that came while something else was done.
    early: VecDeque<Order>,
    agent_gone: bool,
    answers: &'o mut dyn Write,
    standstill: Standstill,
    hooks: Hooks,
    occasion: Occasion,
    /// Whether the post-thaw hook is owed.
    owed: bool,
}

/// Does what an agent orders on `orders`, one line each, until it is told to end or the agent is gone. Nothing is left held at the
/// return.
pub fn watch(orders: impl BufRead + Send + 'static, answers: &mut dyn Write) {
    let (wake, events) = channel();
    let to_watch = wake.clone();
    thread::spawn(move || listen(orders, &to_watch));
    let mut watch = Watch {
        events,
        wake,
        early: VecDeque::new(),
        agent_gone: false,
        answers,
        standstill: Standstill::default(),
        hooks: Hooks::default(),
        occasion: Occasion::default(),
        owed: false,
    };
    watch.until_the_end();
}

fn listen(orders: impl BufRead, to: &Sender<Event>) {
    for line in orders.lines() {
        let order = line.and_then(|line| Ok(serde_json::from_str(&line)?));
        let Ok(order) = order else { break };
        if to.send(Event::Order(order)).is_err() {
            return;
        }
    }
    // Nobody may be there any more, after the order to end.
    let _ = to.send(Event::AgentGone);
}

impl Watch<'_> {
    fn until_the_end(&mut self) {
        loop {
            let Some(order) = self.next_order() else {
                // File systems first: they hold up everybody.
                let _ = self.standstill.give_up();
                // It is told by `pay` itself: nobody else is there to hear it.
                let _ = self.pay(Outcome::AgentDied);
                return;
            };
            let done = match order {
                Order::Begin {
                    hooks,
                    occasion,
                    state_dir,
                } => {
                    self.hooks = hooks;
                    self.occasion = occasion;
                    self.standstill
                        .write_down_in(state_dir.map(OsString::from_vec).map(PathBuf::from));
                    Ok(())
                }
                Order::Run { stage, occasion } => {
                    self.occasion = occasion;
                    self.owed = true;
                    self.run(stage, None)
                }
                Order::FreezeFileSystems { on, deadline } => self.standstill.freeze(&on, deadline),
                Order::ThawFileSystems => self.standstill.thaw(),
                Order::End { outcome, occasion } => {
                    self.occasion = occasion;
                    let thawed = self.standstill.give_up();
                    let paid = self.pay(outcome);
                    self.answer(thawed.and(paid));
                    return;
                }
            };
            self.answer(done);
        }
    }

    /// Runs the post-thaw hook, where it is owed.
    fn pay(&mut self, outcome: Outcome) -> Result<(), String> {
        if !std::mem::take(&mut self.owed) {
            return Ok(());
        }
        let ran = self.run(Stage::PostThaw, Some(outcome.name()));
        if let (Err(why), true) = (&ran, self.agent_gone) {
            // Nobody else will say so.
            tracing::error!("{why}");
        }
        ran
    }

    fn answer(&mut self, done: Result<(), String>) {
        let answer = match done {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Failed(why),
        };
        let written = serde_json::to_vec(&answer)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.answers.write_all(&line)?;
                self.answers.flush()
            });
        if written.is_err() {
            self.agent_gone = true;
        }
    }

    fn next_order(&mut self) -> Option<Order> {
        loop {
            if let Some(order) = self.early.pop_front() {
                return Some(order);
            }
            if self.agent_gone {
                return None;
            }
            self.wait(None);
        }
    }

    /// Waits for something to happen, but not past a deadline.
    fn wait(&mut self, until: Option<Instant>) {
        let deadline = [until, self.standstill.deadline()].into_iter().flatten().min();
        let event = match deadline {
            Some(deadline) => self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Order(order)) => self.early.push_back(order),
            Ok(Event::AgentGone) => self.agent_gone = true,
            Ok(Event::HookEnded) | Err(_) => {}
        }
        self.standstill.look();
    }

    /// Runs the command of a stage, if it has one. A hook that is not the last is killed when the agent goes: nobody is there who
    /// would freeze anything after it.
    fn run(&mut self, stage: Stage, outcome: Option<&str>) -> Result<(), String> {
        let Some(command) = self.hooks.command(stage) else {
            return Ok(());
        };
        let wake = self.wake.clone();
        let on_end = move || {
            // The watch may be over.
            let _ = wake.send(Event::HookEnded);
        };
        let timeout = self.hooks.timeout.max(Duration::from_secs(1));
        let hook = RunningHook::start(stage, command, &self.occasion, outcome, timeout, on_end)?;
        loop {
            if let Progress::Ended(how) = hook.look() {
                return how;
            }
            if self.agent_gone && stage != Stage::PostThaw {
                hook.kill();
                return Err("the agent is gone".to_owned());
            }
            self.wait(Some(hook.deadline()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufReader, PipeReader, PipeWriter, pipe};
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

    /// A guardian in a thread, and the agent's ends of its pipes.
    struct Rig {
        directory: TempDir,
        orders: Option<PipeWriter>,
        answers: BufReader<PipeReader>,
        watching: thread::JoinHandle<()>,
    }

    impl Rig {
        /// With hooks that write their stage and outcome to a log.
        fn new(hooks: impl FnOnce(&Path) -> Hooks) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (orders_in, orders) = pipe().unwrap();
            let (answers, mut answers_out) = pipe().unwrap();
            let hooks = hooks(&directory.path().join("log"));
            let watching = thread::spawn(move || watch(BufReader::new(orders_in), &mut answers_out));
            let mut rig = Self {
                directory,
                orders: Some(orders),
                answers: BufReader::new(answers),
                watching,
            };
            let occasion = Occasion::default();
            let begin = Order::Begin {
                hooks,
                occasion,
                state_dir: None,
            };
            assert_eq!(rig.ask(&begin), Answer::Done);
            rig
        }

        fn tell(&mut self, order: &Order) {
            let mut line = serde_json::to_vec(order).unwrap();
            line.push(b'\n');
            self.orders.as_mut().unwrap().write_all(&line).unwrap();
        }

        fn ask(&mut self, order: &Order) -> Answer {
            self.tell(order);
            let mut line = String::new();
            self.answers.read_line(&mut line).unwrap();
            serde_json::from_str(&line).unwrap()
        }

        fn run(stage: Stage) -> Order {
            Order::Run {
                stage,
                occasion: Occasion {
                    set: Some("db".into()),
                    volumes: vec!["a".into(), "b".into()],
                    frozen: Vec::new(),
                },
            }
        }

        /// Ends it, and gives back what the hooks wrote.
        fn log_at_the_end(mut self) -> String {
            drop(self.orders.take());
            self.watching.join().unwrap();
            fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
        }
    }

    fn logging(log: &Path, before: &str) -> Hooks {
        let write = format!(
            "echo $NBD_EXPORT_STAGE $NBD_EXPORT_SET $NBD_EXPORT_VOLUMES $NBD_EXPORT_OUTCOME >> {}",
            log.display()
        );
        Hooks {
            pre_freeze: Some(format!("{before}{write}")),
            post_freeze: Some(write.clone()),
            post_thaw: Some(write),
            timeout: Duration::from_secs(20),
        }
    }

    fn failure(answer: Answer) -> String {
        match answer {
            Answer::Failed(why) => why,
            Answer::Done => panic!("it must fail"),
        }
    }

    #[test]
    fn hooks_run_in_order_and_know_what_for() {
        let mut rig = Rig::new(|log| logging(log, ""));
        assert_eq!(rig.ask(&Rig::run(Stage::PreFreeze)), Answer::Done);
        assert_eq!(rig.ask(&Rig::run(Stage::PostFreeze)), Answer::Done);
        let end = Order::End {
            outcome: Outcome::Thawed,
            occasion: Occasion::default(),
        };
        assert_eq!(rig.ask(&end), Answer::Done);
        assert_eq!(
            rig.log_at_the_end(),
            "pre-freeze db a b\npost-freeze db a b\npost-thaw thawed\n"
        );
    }

    #[test]
    fn an_agent_that_goes_is_cleaned_up_after_once() {
        let mut rig = Rig::new(|log| logging(log, ""));
        assert_eq!(rig.ask(&Rig::run(Stage::PreFreeze)), Answer::Done);
        assert_eq!(
            rig.log_at_the_end(),
            "pre-freeze db a b\npost-thaw db a b agent-died\n"
        );
        // One that ordered nothing owes nothing.
        let rig = Rig::new(|log| logging(log, ""));
        assert_eq!(rig.log_at_the_end(), "");
    }

    #[test]
    fn an_agent_that_goes_while_its_hook_runs_takes_it_along() {
        let mut rig = Rig::new(|log| logging(log, &format!("echo begun >> {}; sleep 600; ", log.display())));
        rig.tell(&Rig::run(Stage::PreFreeze));
        let log = rig.directory.path().join("log");
        while fs::read_to_string(&log).unwrap_or_default().is_empty() {
            thread::sleep(Duration::from_millis(5));
        }
        let begun = Instant::now();
        assert_eq!(rig.log_at_the_end(), "begun\npost-thaw db a b agent-died\n");
        assert!(begun.elapsed() < Duration::from_secs(120));
    }

    #[test]
    fn a_hook_that_fails_says_why_and_one_that_hangs_is_killed_with_what_it_started() {
        let mut rig = Rig::new(|_| Hooks {
            pre_freeze: Some("echo the database said no >&2; exit 3".into()),
            ..Hooks::default()
        });
        let why = failure(rig.ask(&Rig::run(Stage::PreFreeze)));
        assert!(
            why.contains("exit code 3") && why.ends_with("the database said no"),
            "{why}"
        );
        rig.log_at_the_end();

        let mut rig = Rig::new(|log| Hooks {
            pre_freeze: Some(format!("(sleep 3; touch {}) & sleep 600", log.display())),
            timeout: Duration::from_secs(1),
            ..Hooks::default()
        });
        let begun = Instant::now();
        let why = failure(rig.ask(&Rig::run(Stage::PreFreeze)));
        assert!(why.contains("--hook-timeout"), "{why}");
        assert!(begun.elapsed() < Duration::from_secs(120));
        thread::sleep(Duration::from_secs(3));
        let log = rig.directory.path().join("log");
        assert!(!log.exists(), "what it started was killed, too");
        rig.log_at_the_end();
    }

    #[test]
    fn what_a_hook_leaves_running_does_not_hold_anybody_up() {
        // A session that keeps a lock, say. It holds the standard error of the hook.
        let mut rig = Rig::new(|_| Hooks {
            pre_freeze: Some("sleep 120 & exit 0".into()),
            post_freeze: Some("sleep 120 & echo why >&2; exit 1".into()),
            timeout: Duration::from_secs(60),
            ..Hooks::default()
        });
        let begun = Instant::now();
        assert_eq!(rig.ask(&Rig::run(Stage::PreFreeze)), Answer::Done);
        assert!(failure(rig.ask(&Rig::run(Stage::PostFreeze))).ends_with("why"));
        assert!(begun.elapsed() < Duration::from_secs(50));
        rig.log_at_the_end();
    }
}
