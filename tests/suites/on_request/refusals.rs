//! What is not frozen, and what a client is told then.

use std::process::Stdio;

use tests::needs_loop_devices;
use tests::program::{self, error_object};
use tests::site::text;

use super::{Ground, NEW, run};

/// What a client is told that enters in vain. (libnbd keeps the server's words to itself.)
pub(super) fn refusal(ground: &Ground) -> String {
    let arguments = ["--error-format", "json", "info", &ground.site.uri(NEW)];
    let refused = program::start("proxy-client", &arguments, Stdio::null()).wait();
    assert_eq!(refused.status.code(), Some(1));
    let error = error_object(&refused);
    assert_eq!(error["kind"], "host-refused");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_is_frozen_for_who_only_looks() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let ground = Ground::eager();
    let server = format!("nbd+unix:///?socket={}", ground.site.socket().display());
    for arguments in [&["--list", "--json", &server][..], &["--list", &server]] {
        let output = run("nbdinfo", arguments);
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("@new"),
            "{output:?}"
        );
    }
    program::proxy_client(&["info", "--list", &server]);
    assert!(ground.frozen().is_empty());
    for never in ["vm@new.tag", "vm@", "@new", "other@new"] {
        let output = run("nbdinfo", &["--size", &ground.site.uri(never)]);
        assert!(!output.status.success(), "{never}");
    }
    assert!(ground.frozen().is_empty());
}

#[test]
fn a_freeze_that_fails_is_told_in_words() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let ground = Ground::new(
        "",
        "[hooks]\npre-freeze = \"echo no-such-table >&2; exit 3\"\n[on-request]\nevery = 0",
    );
    let foreign = run("nbdinfo", &["--size", &ground.site.uri(NEW)]);
    assert!(!foreign.status.success(), "{foreign:?}");
    let said = refusal(&ground);
    assert!(said.contains("vm could not be frozen: a hook failed"), "{said}");
    assert!(
        !said.contains("no-such-table"),
        "what a hook says is the operator's: {said}"
    );
    let image = ground.site.image();
    let arguments = [
        "--error-format",
        "json",
        "backup",
        &ground.site.uri(NEW),
        "--output",
        text(&image),
    ];
    let refused = program::start("proxy-client", &arguments, Stdio::null()).wait();
    assert_eq!(refused.status.code(), Some(1));
    let error = error_object(&refused);
    assert_eq!(error["kind"], "host-refused");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("vm could not be frozen"),
        "{error}"
    );
    assert!(!image.exists() && !image.with_extension("zst.partial").exists());
    assert!(ground.frozen().is_empty());
}

#[test]
fn a_client_has_no_more_made_than_the_policy_allows() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let ground = Ground::new("", "[on-request]\nevery = 3600\nmost = 1");
    let entered = run("nbdinfo", &["--size", &ground.site.uri(NEW)]);
    assert!(entered.status.success(), "{entered:?}");
    let said = refusal(&ground);
    assert!(said.contains("vm has 1 frozen images"), "{said}");
    ground.thaw_all();
    let said = refusal(&ground);
    assert!(said.contains("a moment ago"), "{said}");
    assert!(ground.frozen().is_empty());
}

#[test]
fn who_may_not_have_the_volume_has_nothing_made() {
    needs_loop_devices!("mkfs.xfs", "nbdinfo");
    let ground = Ground::new("allow = [\"10.0.0.1\"]", "");
    let said = refusal(&ground);
    assert!(said.contains("no export has this name"), "{said}");
    assert!(ground.frozen().is_empty());
}
