//! GnuTLS clients, libnbd and qemu, against our server.

use tests::needs;
use tests::pki::{Authority, Pki, Subject, TlsDirectory};

use super::{Served, run, stderr};

/// The arguments of a qemu-img command for the export of a server.
fn qemu(served: &Served, tls_directory: &str) -> [String; 4] {
    let credentials = format!("tls-creds-x509,id=tls,dir={tls_directory},endpoint=client");
    let uri: nbd_export::uri::NbdUri = served.uri().parse().unwrap();
    let server = match uri.address {
        nbd_export::uri::NbdAddress::Tcp { host, port } => {
            format!("server.type=inet,server.host={host},server.port={port}")
        }
        nbd_export::uri::NbdAddress::Unix(path) => {
            format!(
                "server.type=unix,server.path={},tls-hostname=localhost",
                path.display()
            )
        }
    };
    let image = format!("driver=nbd,{server},export=vm,tls-creds=tls");
    [
        "--object".to_owned(),
        credentials,
        "--image-opts".to_owned(),
        image,
    ]
}

#[test]
fn libnbd_reads_through_tls_over_tcp_and_unix() {
    needs!("nbdinfo", "nbdcopy");
    let pki = Pki::new();
    for served in [Served::tcp(&pki, &[]), Served::unix(&pki, &[])] {
        assert!(served.uri().starts_with("nbds"), "{}", served.uri());
        let uri = served.uri_with(pki.client.text());
        let info = run("nbdinfo", &["--json", &uri]);
        assert!(info.status.success(), "{}", stderr(&info));
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!(info["TLS"], true, "{info}");
        assert_eq!(info["exports"][0]["export-size"], served.bytes.len());
        let copy = served.path("copy");
        let copied = run("nbdcopy", &[&uri, &copy]);
        assert!(copied.status.success(), "{}", stderr(&copied));
        assert!(std::fs::read(copy).unwrap() == served.bytes);
    }
}

#[test]
fn qemu_reads_through_tls_over_tcp_and_unix() {
    needs!("qemu-img");
    let pki = Pki::new();
    for served in [Served::tcp(&pki, &[]), Served::unix(&pki, &[])] {
        let copy = served.path("copy");
        let [object, credentials, options, image] = qemu(&served, pki.client.text());
        let copied = run(
            "qemu-img",
            &[
                "convert",
                &object,
                &credentials,
                &options,
                &image,
                "-O",
                "raw",
                &copy,
            ],
        );
        assert!(copied.status.success(), "{}", stderr(&copied));
        assert!(std::fs::read(copy).unwrap() == served.bytes);
    }
}

#[test]
fn clients_that_prove_nothing_are_refused() {
    needs!("nbdinfo", "qemu-img");
    let pki = Pki::new();
    let served = Served::tcp(&pki, &[]);
    let strangers = Authority::new("strangers");
    let trusting = || TlsDirectory::trusting(&pki.authority);
    let refused = [
        ("no certificate", trusting()),
        (
            "another authority's",
            trusting().with_client(&strangers.issue(Subject::client("proxy"))),
        ),
        ("expired", pki.another_client(Subject::client("proxy").expired())),
        (
            "self-signed",
            trusting().with_client(&Subject::client("proxy").self_signed()),
        ),
        (
            "a server's",
            trusting().with_client(&pki.authority.issue(Subject::server(&["proxy"]))),
        ),
    ];
    for (what, directory) in &refused {
        let info = run("nbdinfo", &[&served.uri_with(directory.text())]);
        assert!(!info.status.success(), "{what}");
        let [object, credentials, options, image] = qemu(&served, directory.text());
        let info = run("qemu-img", &["info", &object, &credentials, &options, &image]);
        assert!(!info.status.success(), "{what}");
    }
    // Nobody else is hurt.
    let info = run("nbdinfo", &["--size", &served.uri_with(pki.client.text())]);
    assert!(info.status.success(), "{}", stderr(&info));
}

#[test]
fn a_revoked_client_is_refused() {
    needs!("nbdinfo");
    let pki = Pki::new();
    let revoked = pki.authority.issue(Subject::client("revoked"));
    let directory = TlsDirectory::trusting(&pki.authority).with_client(&revoked);
    pki.server.put("ca-crl.pem", &pki.authority.revoke(&[&revoked]));
    let served = Served::tcp(&pki, &[]);
    assert!(
        !run("nbdinfo", &[&served.uri_with(directory.text())])
            .status
            .success()
    );
    let other = pki.another_client(Subject::client_by_dns(&["proxy.example"]));
    let info = run("nbdinfo", &["--size", &served.uri_with(other.text())]);
    assert!(info.status.success(), "{}", stderr(&info));
}

#[test]
fn clients_in_the_clear_are_told_to_use_tls_and_nothing_else() {
    needs!("nbdinfo", "qemu-img", "nbd-client");
    let pki = Pki::new();
    let served = Served::tcp(&pki, &[]);
    let plain = served.uri().replacen("nbds", "nbd", 1);
    for arguments in [vec![plain.as_str()], vec!["--list", plain.as_str()]] {
        let info = run("nbdinfo", &arguments);
        assert!(!info.status.success());
        assert!(!String::from_utf8_lossy(&info.stdout).contains("vm"));
    }
    let info = run("qemu-img", &["info", &plain]);
    assert!(!info.status.success());
    assert!(stderr(&info).contains("TLS"), "{}", stderr(&info));
}

#[test]
fn a_socket_can_do_without_tls_by_name() {
    needs!("nbdinfo");
    let pki = Pki::new();
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain").to_str().unwrap().to_owned();
    let served = Served::tcp(&pki, &["--socket", &format!("{plain},tls=off")]);
    // Unix sockets come first.
    assert_eq!(served.uri(), format!("nbd+unix:///vm?socket={plain}"));
    let info = run("nbdinfo", &["--json", served.uri()]);
    assert!(info.status.success(), "{}", stderr(&info));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["TLS"], false);
}
