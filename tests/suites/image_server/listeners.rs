//! Who gets to an image, and how: TLS, allow lists, sockets that are passed, readiness.

use std::process::Command;

use super::{Ground, assert_same};
use tests::disk::run;
use tests::needs;
use tests::pki::{Pki, Subject};
use tests::program::{Host, built, fails, proxy_client};
use tests::site::text;

#[test]
fn tls_and_allow_lists_hold_for_images_too() {
    let ground = Ground::new();
    let pki = Pki::new();
    let stranger = pki.another_client(Subject::client("stranger"));
    let open = format!("open={}", ground.image.display());
    let closed = format!("closed={}", ground.image.display());
    let host = Host::serve_images(&[
        &open,
        &closed,
        "--listen",
        "127.0.0.1:0",
        "--tls-dir",
        pki.server.text(),
        "--allow",
        "closed=proxy",
    ]);
    let uri = |name: &str| host.uri(name).to_owned();
    assert!(uri("open").starts_with("nbds://"));
    let copy = ground.path("copy");
    let copied = ["copy", &uri("open"), text(&copy), "--tls-dir", stranger.text()];
    proxy_client(&copied);
    assert_same(&copy, &ground.path("volume"));
    let refused = ["info", &uri("closed"), "--tls-dir", stranger.text()];
    fails("proxy-client", 1, &refused);
    let listed = proxy_client(&["info", "--list", &uri("open"), "--tls-dir", stranger.text()]);
    assert!(listed.contains("open") && !listed.contains("closed"), "{listed}");
    // In the clear nothing is told.
    fails(
        "proxy-client",
        1,
        &["info", "--list", &uri("open").replace("nbds:", "nbd:")],
    );
    assert!(host.terminate().success());
}

#[test]
fn a_client_brings_its_own_server() {
    needs!("nbdcopy", "nbdsh");
    let ground = Ground::new();
    let (program, copy) = (built("proxy-client"), ground.path("copy"));
    // Sockets of a service manager.
    let command = [
        "--",
        "[",
        text(&program),
        "serve",
        text(&ground.image),
        "]",
        text(&copy),
    ];
    run("nbdcopy", &command);
    assert_same(&copy, &ground.path("volume"));
    // Standard input and output.
    let script = format!(
        "h.connect_command([{:?}, 'serve', '--single', {:?}])\nprint(h.get_size())\nh.shutdown()",
        text(&program),
        text(&ground.image)
    );
    let told = Command::new("nbdsh")
        .args(["-c", &script])
        .env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&told.stdout).trim(),
        "33554432",
        "{told:?}"
    );
}

#[test]
fn it_is_ready_when_every_image_proved_to_be_one() {
    let ground = Ground::new();
    let script = "rm -f ready; \"$PROXY\" serve \"$1\" --socket s --ready-fd 9 9>ready >told & pid=$!
        while [ ! -s ready ] && kill -0 $pid 2>/dev/null; do sleep 0.05; done
        kill $pid; wait $pid";
    let serve = |image: &std::path::Path| {
        Command::new("timeout")
            .args(["60", "sh", "-c", script, "sh", text(image)])
            .current_dir(ground.path("."))
            .env("PROXY", built("proxy-client"))
            .output()
            .unwrap()
    };
    let output = serve(&ground.image);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(ground.path("ready")).unwrap(), b"\n");
    assert!(
        std::fs::read_to_string(ground.path("told"))
            .unwrap()
            .ends_with("READY\n")
    );
    let output = serve(&ground.path("volume"));
    assert!(!output.status.success());
    assert_eq!(std::fs::read(ground.path("ready")).unwrap(), b"");
}
