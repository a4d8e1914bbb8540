//! What is seen of a daemon while it works, goes away, and comes back.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::{Proxy, request};
use tests::needs;
use tests::program::{built, fails, proxy_client};

use super::Server;

/// `proxy-client status --watch`, and the lines that it prints.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(url: &str, more: &[&str]) -> Self {
        let mut child = Command::new(built("proxy-client"))
            .args(["status", "--watch", "--daemon", url])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (to, lines) = channel();
        thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| to.send(line))
        });
        Self { child, lines }
    }

    fn until(&self, is: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).expect("the line never came");
            if is(&line) {
                return line;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn it_is_watched_while_it_works_and_while_it_is_away() {
    needs!("nbdkit");
    let slow = Server::slow(1000);
    let mut proxy = Proxy::start("jobs = 1", &slow.table("web", ""));
    let url = proxy.url();
    let job = proxy.submit(&request("web", "x", "vm")).unwrap().id;

    let people = Watching::start(&url, &[]);
    people.until(|line| line.contains("1 of at most 1 under way"));
    people.until(|line| line.contains("web/vm") && line.ends_with("/s"));
    let programs = Watching::start(&url, &["--json"]);
    let line = programs.until(|_| true);
    let look: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&look["most"], &look["jobs"][0]["id"]), (&1.into(), &job.into()));

    proxy.kill();
    let lost = fails("proxy-client", 1, &["status", "--daemon", &url]);
    assert_eq!(lost["kind"], "daemon-lost");
    thread::sleep(Duration::from_secs(3));
    while people.lines.try_recv().is_ok() {}
    proxy.begin();
    people.until(|line| line.contains("web/vm"));
    proxy.ask(async |daemon| daemon.cancel(job).await).unwrap();
    people.until(|line| line.contains("0 of at most 1 under way"));

    // Asked once it answers once, and in whole.
    let text = proxy_client(&["status", "--daemon", &url]);
    assert_eq!(text.matches("repository").count(), 1, "{text}");
}
