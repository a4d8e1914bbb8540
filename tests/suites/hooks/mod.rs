//! Commands around a freeze, and the process that sees to their end.

mod guard;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::disk::{Scratch, scratch};
use tests::program::{Host, fails, nbd_export, proxy_client};
use tests::site::text;

/// A volume, and hooks that write to a log.
struct Ground {
    directory: Scratch,
}

impl Ground {
    fn new() -> Self {
        let directory = scratch();
        fs::write(directory.path().join("vm.img"), vec![7; 1 << 20]).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A hook that logs what it is told, after a command.
    fn hook(&self, before: &str) -> String {
        format!(
            "{before} echo $NBD_EXPORT_STAGE set=$NBD_EXPORT_SET volumes=$NBD_EXPORT_VOLUMES frozen=$NBD_EXPORT_FROZEN \
             $NBD_EXPORT_OUTCOME >> {}",
            self.path("log").display()
        )
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn log_has(&self, words: &str) {
        wait_for(|| self.log().contains(words), &format!("{words} in the log"));
    }

    fn arguments(&self, pre_freeze: &str) -> Vec<String> {
        let path = |name: &str| text(&self.path(name)).to_owned();
        let mut arguments: Vec<String> = [
            "--socket".into(),
            path("socket"),
            "--control".into(),
            path("control"),
        ]
        .into();
        arguments.extend([
            "--freeze".into(),
            "quiesce".into(),
            format!("vm={}", path("vm.img")),
        ]);
        arguments.extend(["--state-dir".into(), path("state")]);
        arguments.extend(["--pre-freeze".into(), self.hook(pre_freeze)]);
        arguments.extend(["--post-freeze".into(), self.hook("")]);
        arguments.extend(["--post-thaw".into(), self.hook("")]);
        arguments
    }

    /// Whether the volume can be written to, as when nothing is frozen.
    fn is_free(&self) -> bool {
        fs::File::options().write(true).open(self.path("vm.img")).is_ok()
    }
}

fn wait_for(is_so: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(100);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn exists(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

#[test]
fn hooks_run_around_a_freeze_and_raise_its_strength() {
    let ground = Ground::new();
    let arguments = ground.arguments("");
    let host = Host::serve(&strs(&arguments));
    let control = ground.path("control");
    let listing: Value =
        serde_json::from_str(&nbd_export(&["list", "--json", "--control", text(&control)])).unwrap();
    let frozen = &listing["volumes"][0]["frozen"][0];
    let uuid = frozen["uuid"].as_str().unwrap();
    assert_eq!(frozen["strength"], "application");
    let told = proxy_client(&["info", host.uri("vm"), "--json"]);
    assert!(told.contains("strength=application"), "{told}");
    let before = format!("pre-freeze set= volumes=vm frozen=\npost-freeze set= volumes=vm frozen={uuid}\n");
    assert_eq!(ground.log(), before);
    nbd_export(&["thaw", "vm", "--control", text(&control)]);
    assert_eq!(
        ground.log(),
        format!("{before}post-thaw set= volumes=vm frozen={uuid} thawed\n")
    );
    // Each freeze has its own, and the end of the agent ends them.
    nbd_export(&["freeze", "vm", "--as", "2", "--control", text(&control)]);
    assert!(host.terminate().success());
    assert_eq!(ground.log().matches("pre-freeze").count(), 2);
    assert_eq!(ground.log().matches("post-thaw").count(), 2);
}

#[test]
fn a_hook_that_fails_prevents_the_freeze_and_says_why() {
    let ground = Ground::new();
    let arguments = ground.arguments("echo no space for a checkpoint >&2; exit 7;");
    let error = fails("nbd-export", 1, &[&["serve"], &strs(&arguments)[..]].concat());
    assert_eq!(error["kind"], "hook");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("exit code 7") && message.contains("no space for a checkpoint"),
        "{message}"
    );
    assert!(ground.is_free());
    // What it may have stopped before it failed is released.
    assert_eq!(ground.log(), "post-thaw set= volumes=vm frozen= failed\n");
}

#[test]
fn a_hook_that_hangs_is_killed_at_its_deadline() {
    let ground = Ground::new();
    let pid = ground.path("pid");
    let mut arguments = ground.arguments(&format!("echo $$ > {}; sleep 600;", pid.display()));
    arguments.extend(["--hook-timeout".into(), "1".into()]);
    let begun = Instant::now();
    let error = fails("nbd-export", 1, &[&["serve"], &strs(&arguments)[..]].concat());
    assert_eq!(error["kind"], "hook");
    assert!(begun.elapsed() < Duration::from_secs(120));
    let hook: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    assert!(!exists(hook));
    assert!(ground.is_free());
    assert_eq!(ground.log(), "post-thaw set= volumes=vm frozen= failed\n");
}

#[test]
fn a_failed_post_freeze_gives_the_freeze_up() {
    let ground = Ground::new();
    let mut arguments = ground.arguments("");
    let at = arguments.iter().position(|a| a == "--post-freeze").unwrap();
    arguments[at + 1] = "echo locked for good >&2; false".into();
    let error = fails("nbd-export", 1, &[&["serve"], &strs(&arguments)[..]].concat());
    assert_eq!(error["kind"], "hook");
    assert!(error["message"].as_str().unwrap().contains("locked for good"));
    assert!(ground.is_free());
    assert!(ground.log().ends_with("failed\n"));
}

/// With no hook of its own to run, a thaw has no reason to wait for that of another freeze.
#[test]
fn a_thaw_without_a_hook_waits_for_no_freeze() {
    let ground = Ground::new();
    let (control, begun, go_on) = (ground.path("control"), ground.path("begun"), ground.path("go-on"));
    let path = |name: &str| text(&ground.path(name)).to_owned();
    // The first freeze, at the start, goes through.
    let pre_freeze = format!(
        "test -e {0} || exec touch {0}; touch {1}; while test ! -e {2}; do sleep 0.1; done",
        path("frozen-once"),
        text(&begun),
        text(&go_on),
    );
    let host = Host::serve(&[
        "--socket",
        &path("socket"),
        "--control",
        text(&control),
        "--freeze",
        "quiesce",
        "--state-dir",
        &path("state"),
        "--pre-freeze",
        &pre_freeze,
        "--hook-timeout",
        "60",
        &format!("vm={}", path("vm.img")),
    ]);
    std::thread::scope(|scope| {
        let freeze = scope.spawn(|| nbd_export(&["freeze", "vm", "--as", "2", "--control", text(&control)]));
        wait_for(|| begun.exists(), "the hook of the other freeze");
        nbd_export(&["thaw", "vm", "--control", text(&control)]);
        assert!(!freeze.is_finished(), "it waited for the other freeze");
        fs::write(&go_on, "").unwrap();
        freeze.join().unwrap();
    });
    assert!(host.terminate().success());
}

#[test]
fn an_agent_that_is_killed_leaves_no_application_stopped() {
    // While the first hook runs.
    let ground = Ground::new();
    let pid = ground.path("pid");
    let arguments = ground.arguments(&format!("echo $$ > {}; sleep 600;", pid.display()));
    let mut all = vec!["serve".to_owned()];
    all.extend(arguments);
    let agent = tests::program::start("nbd-export", &strs(&all), std::process::Stdio::null());
    wait_for(
        || fs::read_to_string(&pid).is_ok_and(|pid| !pid.is_empty()),
        "the hook",
    );
    let hook: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    ground.log_has("post-thaw set= volumes=vm frozen= agent-died");
    wait_for(|| !exists(hook), "the end of the hook");
    drop(agent);

    // While the frozen image lives.
    let ground = Ground::new();
    let host = Host::serve(&strs(&ground.arguments("")));
    host.kill();
    ground.log_has("agent-died");
    assert_eq!(ground.log().matches("post-thaw").count(), 1);
}
