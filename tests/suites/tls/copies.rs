//! `copy` and `restore` through TLS, with servers that others wrote: right bytes with the right certificates, and not a byte without.

use std::path::Path;

use tests::peer::Peer;
use tests::pki::{Authority, Pki, Subject, TlsDirectory};
use tests::program::{self, fails};
use tests::{image, needs, volume};

const SIZE: u64 = 32 << 20;

/// A volume, its backup, and targets of old data.
struct Ground {
    directory: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        volume::motley(&directory.path().join("source"));
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn source(&self) -> String {
        self.path("source")
    }

    /// A file for a server to take a copy into.
    fn old(&self, name: &str) -> String {
        volume::full_of_old_data(Path::new(&self.path(name)), SIZE);
        self.path(name)
    }

    fn assert_copied(&self, path: &str) {
        assert!(
            std::fs::read(path).unwrap() == std::fs::read(self.source()).unwrap(),
            "{path} is no copy"
        );
    }

    fn assert_untouched(&self, path: &str) {
        let bytes = std::fs::read(path).unwrap();
        assert!(
            bytes.len() as u64 == SIZE && bytes.iter().all(|byte| *byte == volume::OLD),
            "{path} was written to"
        );
    }
}

fn nbdkit(file: &str, more: &[&str]) -> Peer {
    Peer::nbdkit(&[more, &["file", file]].concat())
}

fn nbdkit_in_tls(file: &str, server: &TlsDirectory) -> Peer {
    let certificates = format!("--tls-certificates={}", server.text());
    nbdkit(file, &["--tls=require", "--tls-verify-peer", &certificates])
}

fn qemu_nbd_in_tls(file: &str, server: &TlsDirectory) -> Peer {
    let credentials = format!(
        "tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on",
        server.text()
    );
    Peer::qemu_nbd(&["-f", "raw", "--object", &credentials, "--tls-creds", "tls", file])
}

/// The default export of a server, inside TLS.
fn secure(peer: &Peer) -> String {
    peer.uri_text("").replacen("nbd", "nbds", 1)
}

/// A restore of an image, and a copy of a volume, to a server: each a program's arguments.
fn writing<'a>(ground: &'a str, backup: &'a str, uri: &'a str, tls: &'a str) -> [Vec<&'a str>; 2] {
    [
        vec!["copy", "--tls-dir", tls, ground, uri],
        vec!["restore", "--tls-dir", tls, backup, "--output", uri],
    ]
}

#[test]
fn foreign_servers_are_copied_and_restored_to_inside_tls() {
    needs!("nbdkit", "qemu-nbd");
    let (pki, ground) = (Pki::new(), Ground::new());
    let (source, backup) = (ground.source(), image::of(Path::new(&ground.source())));
    let backup = backup.to_str().unwrap();
    type Server = fn(&str, &TlsDirectory) -> Peer;
    let servers: [Server; 2] = [nbdkit_in_tls, qemu_nbd_in_tls];
    for (number, serve) in servers.into_iter().enumerate() {
        for (verb, name) in ["copied", "restored"].into_iter().enumerate() {
            let target = ground.old(&format!("{name}-{number}"));
            let peer = serve(&target, &pki.server);
            let uri = secure(&peer);
            program::proxy_client(&writing(&source, backup, &uri, pki.client.text())[verb]);
            peer.terminate();
            ground.assert_copied(&target);
        }
        // And back, with the directory in the URI.
        let peer = serve(&source, &pki.server);
        let separator = format!("{}&tls-certificates={}", secure(&peer), pki.client.text());
        let back = ground.path(&format!("back-{number}"));
        program::proxy_client(&["copy", &separator, &back]);
        ground.assert_copied(&back);
    }
}

#[test]
fn nothing_is_written_where_one_side_does_not_trust_the_other() {
    needs!("nbdkit", "qemu-nbd");
    let (pki, ground) = (Pki::new(), Ground::new());
    let (source, backup) = (ground.source(), image::of(Path::new(&ground.source())));
    let backup = backup.to_str().unwrap();
    let strangers = Authority::new("strangers");
    let as_server = || strangers.issue(Subject::server(&["localhost"]));
    let as_client = || strangers.issue(Subject::client("proxy"));
    for (what, server, client) in [
        (
            "a server of another authority",
            &TlsDirectory::trusting(&pki.authority).with_server(&as_server()),
            &pki.client,
        ),
        (
            "a client of another authority",
            &pki.server,
            &TlsDirectory::trusting(&pki.authority).with_client(&as_client()),
        ),
        (
            "a client of nobody",
            &pki.server,
            &TlsDirectory::trusting(&pki.authority),
        ),
    ] {
        let target = ground.old("target");
        let mut peers = vec![nbdkit_in_tls(&target, server)];
        // It does not start with a certificate that is not of its own authority.
        if !what.starts_with("a server") {
            peers.push(qemu_nbd_in_tls(&target, server));
        }
        for peer in peers {
            let uri = secure(&peer);
            for arguments in writing(&source, backup, &uri, client.text()) {
                let error = fails("proxy-client", 1, &arguments);
                // GnuTLS closes the connection of a client that it does not like, and not always with a reason.
                let kinds = ["host-untrusted", "host-lost"];
                assert!(
                    kinds.contains(&error["kind"].as_str().unwrap()),
                    "{what}: {error}"
                );
            }
            let back = ground.path("back");
            fails(
                "proxy-client",
                1,
                &["copy", "--tls-dir", client.text(), &uri, &back],
            );
            image::assert_nothing_left(Path::new(&back));
            peer.terminate();
        }
        ground.assert_untouched(&target);
    }
}

#[test]
fn no_copy_goes_to_a_server_that_has_no_tls() {
    needs!("nbdkit", "qemu-nbd");
    let (pki, ground) = (Pki::new(), Ground::new());
    let (source, backup) = (ground.source(), image::of(Path::new(&ground.source())));
    let backup = backup.to_str().unwrap();
    let target = ground.old("target");
    for peer in [
        nbdkit(&target, &[]),
        nbdkit(&target, &["--mask-handshake=0"]),
        Peer::qemu_nbd(&["-f", "raw", &target]),
    ] {
        let uri = secure(&peer);
        for arguments in writing(&source, backup, &uri, pki.client.text()) {
            let error = fails("proxy-client", 1, &arguments);
            let kinds = ["host-refused", "host-incompatible"];
            assert!(kinds.contains(&error["kind"].as_str().unwrap()), "{error}");
        }
        let back = ground.path("back");
        fails(
            "proxy-client",
            1,
            &["copy", "--tls-dir", pki.client.text(), &uri, &back],
        );
        image::assert_nothing_left(Path::new(&back));
        peer.terminate();
    }
    ground.assert_untouched(&target);
}
