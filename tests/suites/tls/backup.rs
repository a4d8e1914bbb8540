//! Both programs, inside TLS.

use std::process::Command;

use tests::digest;
use tests::needs;
use tests::pki::{Authority, Pki, Subject, TlsDirectory};
use tests::program::{backup, fails};

use super::Served;

#[test]
fn a_backup_through_tls_is_the_volume() {
    needs!("zstd");
    let pki = Pki::new();
    for served in [Served::tcp(&pki, &[]), Served::unix(&pki, &[])] {
        let image = served.path("image");
        let report = backup(&[served.uri(), "--tls-dir", pki.client.text(), "--output", &image]);
        assert_eq!(report["percent_direct"], 0.0, "{report}");
        let restored = digest::of_command(Command::new("zstd").args(["-dcq", &image]));
        assert_eq!(restored, blake3::hash(&served.bytes));
    }
}

#[test]
fn a_backup_fails_where_one_side_does_not_believe_the_other() {
    let pki = Pki::new();
    let served = Served::tcp(&pki, &[]);
    let image = served.path("image");
    let kind = |code, uri: &str, more: &[&str]| {
        let arguments = [&["backup", uri, "--output", &image], more].concat();
        let error = fails("proxy-client", code, &arguments);
        assert!(!std::path::Path::new(&image).exists());
        error
    };
    let strangers = Authority::new("strangers");
    let stranger =
        TlsDirectory::trusting(&pki.authority).with_client(&strangers.issue(Subject::client("proxy")));
    for directory in [
        &TlsDirectory::trusting(&pki.authority),
        &stranger,
        &pki.another_client(Subject::client("proxy").expired()),
        &TlsDirectory::trusting(&strangers),
    ] {
        let error = kind(1, served.uri(), &["--tls-dir", directory.text()]);
        assert_eq!(error["kind"], "host-untrusted", "{error}");
    }
    let wrong_name = format!("{}?tls-hostname=elsewhere.example", served.uri());
    let error = kind(1, &wrong_name, &["--tls-dir", pki.client.text()]);
    assert_eq!(error["kind"], "host-untrusted", "{error}");

    let plain = served.uri().replacen("nbds", "nbd", 1);
    let error = kind(1, &plain, &[]);
    assert!(error["message"].as_str().unwrap().contains("nbds://"), "{error}");
    // It would encrypt nothing.
    kind(2, &plain, &["--tls-dir", pki.client.text()]);
    let error = kind(2, served.uri(), &[]);
    assert!(
        error["message"].as_str().unwrap().contains("--tls-dir"),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let pki = Pki::new();
    let served = Served::tcp(&pki, &[]);
    let image = served.path("image");
    let volume = served.path("vm.img");
    let mixed = TlsDirectory::trusting(&pki.authority)
        .with_server(&pki.authority.issue(Subject::server(&["localhost"])))
        .with_client(&pki.authority.issue(Subject::client("proxy")));
    let other = pki.authority.issue(Subject::client("other"));
    let spoil = |name: &str, text: Option<&str>| {
        let before = std::fs::read_to_string(mixed.file(name)).unwrap();
        match text {
            Some(text) => mixed.put(name, text),
            None => std::fs::remove_file(mixed.file(name)).unwrap(),
        }
        let side = if name.starts_with("client") {
            "client"
        } else {
            "server"
        };
        if side == "client" || name.starts_with("ca") {
            let backup = [
                "backup",
                served.uri(),
                "--tls-dir",
                mixed.text(),
                "--output",
                &image,
            ];
            let error = fails("proxy-client", 2, &backup);
            assert!(
                error["message"].as_str().unwrap().contains(name),
                "{name}: {error}"
            );
        }
        if side == "server" {
            let socket = served.path("other");
            let serve = ["serve", &volume, "--socket", &socket, "--tls-dir", mixed.text()];
            let error = fails("nbd-export", 1, &serve);
            assert!(
                error["message"].as_str().unwrap().contains(name),
                "{name}: {error}"
            );
        }
        mixed.put(name, &before);
    };
    for name in [
        "ca-cert.pem",
        "server-cert.pem",
        "server-key.pem",
        "client-cert.pem",
        "client-key.pem",
    ] {
        spoil(name, None);
        spoil(name, Some("nothing"));
        spoil(
            name,
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        );
    }
    for name in ["server-key.pem", "client-key.pem"] {
        spoil(name, Some(&other.key));
    }
}
