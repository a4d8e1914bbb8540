//! The promises that every program keeps, as one macro.

use std::process::Output;

use serde_json::Value;
use tests::{disk, program};

/// Tests of a program: its verbs, command lines that lack an argument, and command lines whose input (`@`) cannot be read.
macro_rules! promises {
    ($module:ident: $program:literal, verbs $verbs:expr, missing $missing:expr, unreadable $unreadable:expr $(,)?) => {
        mod $module {
            #[test]
            fn help_is_there_for_every_verb() {
                super::help_is_there($program, &$verbs);
            }

            #[test]
            fn version() {
                super::version($program);
            }

            #[test]
            fn what_is_not_understood_is_a_usage_error() {
                super::usage_error($program, &["--no-such-option"]);
                super::usage_error($program, &["no-such-verb"]);
                super::usage_error($program, &[]);
                for verb in $verbs {
                    super::usage_error($program, &[verb, "--no-such-option"]);
                }
            }

            #[test]
            fn what_lacks_an_argument_is_a_usage_error() {
                for arguments in $missing {
                    super::usage_error($program, arguments);
                }
            }

            #[test]
            fn what_cannot_be_read_is_named() {
                for arguments in $unreadable {
                    super::unreadable_input($program, arguments);
                }
            }
        }
    };
}

promises!(
    proxy_client: "proxy-client",
    verbs [
        "backup", "resume", "restore", "copy", "info", "verify", "inspect", "serve", "doctor", "daemon", "jobs", "status", "demo",
        "generate",
    ],
    missing [
        &["backup"][..],
        &["backup", "nbd://host/x"],
        &["backup", "--output", "x"],
        &["backup", "nbd://host/x", "--output", "x", "--require-direct", "101"],
        &["backup", "nbd://host/x", "--output", "x", "--audit", "many"],
        &["backup", "nbd://host/x", "nbd://host/y", "--output", "-"],
        &["backup", "nbd://host/x", "nbd://host/y", "--output", "x", "--parent", "z"],
        &["backup", "nbd://host/x", "nbd://host/y", "--set", "s", "--output", "x"],
        &["backup", "http://host/x", "--output", "x"],
        &["backup", "nbds://host/x", "--output", "x"],
        &["serve"],
        &["serve", "x", "--overlay", "y=z"],
        &["serve", "x", "y/x"],
        &["serve", "x", "--listen", "0.0.0.0:0"],
        &["serve", "x", "--listen", "127.0.0.1:0", "--overlay", "y"],
        &["serve", "x", "--allow", "y=unix"],
        &["restore"],
        &["restore", "x"],
        &["restore", "x", "--output", "http://host/x"],
        &["restore", "x", "--output", "y", "--connections", "0"],
        &["copy"],
        &["copy", "x"],
        &["copy", "x", "http://host/x"],
        &["copy", "nbd:///x", "y"],
        &["copy", "null:", "y"],
        &["copy", "x", "y", "--timeout", "0"],
        &["copy", "x", "y", "--timeout", "soon"],
        &["copy", "x", "y", "--request-size", "5000"],
        &["copy", "x", "y", "--requests", "65"],
        &["copy", "/dev/zero", "y"],
        &["info"],
        &["info", "/x"],
        &["info", "nbd://host/x", "--totals"],
        &["info", "nbd://host/x", "--map=nocolon"],
        &["info", "nbd://host/x", "--size", "--list"],
        &["verify"],
        &["verify", "x", "y"],
        &["inspect"],
        &["doctor"],
        &["daemon"],
        &["jobs", "--watch"],
        &["jobs", "--daemon", "http://x"],
        &["status", "--daemon", "https://x"],
        &["doctor", "--lun", "plain"],
        &["--error-format", "yaml", "verify", "x"],
    ],
    unreadable [
        &["verify", "@"][..],
        &["restore", "@", "--output", "/dev/null/x"],
        &["inspect", "@"],
        &["copy", "@", "null:"],
        &["doctor", "--lun", "@"],
        &["daemon", "--config", "@"],
    ],
);

promises!(
    nbd_export: "nbd-export",
    verbs ["serve", "freeze", "thaw", "list", "cleanup", "map", "probe", "generate", "backup"],
    missing [
        &["serve"][..],
        &["serve", "--freeze", "hope", "/x"],
        &["serve", "--origin", "x=/y", "--socket", "/s"],
        &["freeze"],
        &["backup", "vm"],
        &["backup", "vm", "--proxy", "http://x"],
        &["backup", "vm", "--proxy", "https://x"],
        &["backup", "vm", "--proxy", "/x", "--hold", "0"],
        &["thaw"],
        &["map"],
        &["probe"],
        &["probe", "/x", "--snapshot-size", "0%"],
    ],
    unreadable [&["map", "@"][..], &["probe", "@"]],
);

fn help_is_there(name: &str, verbs: &[&str]) {
    let overview = help(name, &["--help"]);
    for verb in verbs {
        assert!(overview.contains(verb), "{overview}");
        let text = help(name, &[verb, "--help"]);
        assert!(text.contains(&format!("Usage: {name} {verb}")), "{text}");
    }
}

fn help(name: &str, arguments: &[&str]) -> String {
    let output = program::run(name, arguments);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{name} {arguments:?}: {output:?}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    text
}

fn version(name: &str) {
    assert_eq!(
        help(name, &["--version"]),
        format!("{name} {}\n", env!("CARGO_PKG_VERSION"))
    );
}

/// Exit code 2 and nothing on stdout: as a text, and as one JSON object alone.
fn usage_error(name: &str, arguments: &[&str]) {
    let text = program::run(name, arguments);
    assert_eq!(text.status.code(), Some(2), "{name} {arguments:?}: {text:?}");
    assert!(text.stdout.is_empty() && !text.stderr.is_empty(), "{text:?}");
    if arguments.contains(&"--error-format") {
        return;
    }
    for format in [&["--error-format=json"][..], &["--error-format", "json"]] {
        let output = program::run(name, &[format, arguments].concat());
        let error = only_object(&output);
        assert_eq!(
            (output.status.code(), &error["kind"]),
            (Some(2), &"usage".into()),
            "{error}"
        );
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

/// Exit code 1, and the path in the message.
fn unreadable_input(name: &str, arguments: &[&str]) {
    let directory = disk::scratch();
    let path = directory.path().join("missing");
    let path = path.to_str().unwrap();
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|a| if *a == "@" { path } else { a })
        .collect();
    let error = program::fails(name, 1, &arguments);
    assert!(error["message"].as_str().unwrap().contains(path), "{error}");
}

/// What a program that failed wrote to stderr, which must be one object with the promised fields and no more.
fn only_object(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stderr).unwrap();
    let error: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"));
    assert!(
        error["kind"].is_string() && error["message"].is_string(),
        "{error}"
    );
    assert_eq!(error["exit_code"], output.status.code().unwrap(), "{error}");
    error
}
