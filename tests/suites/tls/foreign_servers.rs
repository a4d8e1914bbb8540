//! Our client against GnuTLS servers: nbdkit and qemu-nbd.

use nbd_export::proto::ContextName;
use nbd_export::uri::NbdUri;
use proxy_client::nbd::{Connection, NbdError, list_contexts};
use tests::needs;
use tests::peer::Peer;
use tests::pki::{Authority, Pki, Subject, TlsDirectory};

const SIZE: usize = 4 << 20;

/// A file that a foreign server serves.
struct Disk {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..SIZE as u64 / 8).flat_map(u64::to_le_bytes).collect();
        std::fs::write(directory.path().join("disk"), &bytes).unwrap();
        Self { directory, bytes }
    }

    fn path(&self) -> String {
        self.directory.path().join("disk").to_str().unwrap().to_owned()
    }

    fn nbdkit(&self, server: &TlsDirectory) -> Peer {
        let certificates = format!("--tls-certificates={}", server.text());
        Peer::nbdkit(&[
            "-r",
            "--tls=require",
            "--tls-verify-peer",
            &certificates,
            "file",
            &self.path(),
        ])
    }

    fn qemu_nbd(&self, server: &TlsDirectory) -> Peer {
        let credentials = format!(
            "tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on",
            server.text()
        );
        let path = self.path();
        Peer::qemu_nbd(&[
            "-r",
            "-f",
            "raw",
            "--object",
            &credentials,
            "--tls-creds",
            "tls",
            &path,
        ])
    }

    fn servers(&self, server: &TlsDirectory) -> [Peer; 2] {
        [self.nbdkit(server), self.qemu_nbd(server)]
    }
}

/// The URI of a server's default export inside TLS.
fn secure(peer: &Peer, client: &TlsDirectory, more: &str) -> NbdUri {
    let plain = peer.uri_text("");
    let uri = plain.replacen("nbd", "nbds", 1);
    format!("{uri}&tls-certificates={}{more}", client.text())
        .parse()
        .unwrap()
}

async fn refused(uri: &NbdUri) -> NbdError {
    match Connection::connect(uri, vec![]).await {
        Err(error) => error,
        Ok(_) => panic!("{uri}: it must not connect"),
    }
}

#[tokio::test]
async fn whole_disks_are_read_through_tls() {
    needs!("nbdkit", "qemu-nbd");
    let (pki, disk) = (Pki::new(), Disk::new());
    for peer in disk.servers(&pki.server) {
        let uri = secure(&peer, &pki.client, "");
        let allocation = ContextName::new("base:allocation").unwrap();
        let listed = list_contexts(&uri, vec![]).await.unwrap();
        assert!(listed.contains(&allocation));
        let connection = Connection::connect(&uri, vec![allocation]).await.unwrap();
        assert_eq!(connection.session().contexts.len(), 1);
        let reads = (0..SIZE as u64)
            .step_by(1 << 18)
            .map(|at| connection.read(at, 1 << 18));
        let read = futures_util::future::join_all(reads).await;
        let read: Vec<u8> = read.into_iter().flat_map(|part| part.unwrap()).collect();
        assert!(read == disk.bytes);
        connection.disconnect().await;
    }
}

#[tokio::test]
async fn servers_that_prove_nothing_are_refused() {
    needs!("nbdkit");
    let (pki, disk) = (Pki::new(), Disk::new());
    let strangers = Authority::new("strangers");
    // They trust our client, and show it something else.
    let shows = |issued| TlsDirectory::trusting(&pki.authority).with_server(&issued);
    let local = || Subject::server(&["localhost"]);
    for (what, server) in [
        ("another authority's", shows(strangers.issue(local()))),
        ("self-signed", shows(local().self_signed())),
        ("expired", shows(pki.authority.issue(local().expired()))),
        (
            "of another name",
            shows(
                pki.authority
                    .issue(Subject::server(&["localhost.example", "xlocalhost"])),
            ),
        ),
        (
            "of a client",
            shows(pki.authority.issue(Subject::client("localhost"))),
        ),
    ] {
        let peer = disk.nbdkit(&server);
        let error = refused(&secure(&peer, &pki.client, "")).await;
        assert!(
            matches!(&error, NbdError::Tls(why) if why.is_of_peer()),
            "{what}: {error:?}"
        );
        assert!(!error.is_connection_lost(), "{what}");
    }
    // The same server under the name that it has, and under one that it has not.
    let named = shows(pki.authority.issue(Subject::server(&["host.example"])));
    let peer = disk.nbdkit(&named);
    let as_host = secure(&peer, &pki.client, "&tls-hostname=host.example");
    assert!(Connection::connect(&as_host, vec![]).await.is_ok());
    refused(&secure(&peer, &pki.client, "&tls-hostname=example")).await;
    refused(&secure(&peer, &pki.client, "&tls-hostname=127.0.0.1")).await;
}

#[tokio::test]
async fn a_revoked_server_is_refused() {
    needs!("nbdkit");
    let (pki, disk) = (Pki::new(), Disk::new());
    let issued = pki.authority.issue(Subject::server(&["localhost"]));
    let peer = disk.nbdkit(&TlsDirectory::trusting(&pki.authority).with_server(&issued));
    let uri = secure(&peer, &pki.client, "");
    assert!(Connection::connect(&uri, vec![]).await.is_ok());
    pki.client.put("ca-crl.pem", &pki.authority.revoke(&[&issued]));
    let error = refused(&uri).await;
    assert!(
        matches!(&error, NbdError::Tls(why) if why.is_of_peer()),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_gets_nothing() {
    needs!("nbdkit", "qemu-nbd");
    let (pki, disk) = (Pki::new(), Disk::new());
    let nobody = TlsDirectory::trusting(&pki.authority);
    let stranger = TlsDirectory::trusting(&pki.authority)
        .with_client(&Authority::new("strangers").issue(Subject::client("proxy")));
    for peer in disk.servers(&pki.server) {
        refused(&secure(&peer, &nobody, "")).await;
        refused(&secure(&peer, &stranger, "")).await;
    }
}

#[tokio::test]
async fn servers_in_the_clear_get_no_request_of_a_client_that_wants_tls() {
    needs!("nbdkit", "qemu-nbd");
    let (pki, disk) = (Pki::new(), Disk::new());
    let path = disk.path();
    for peer in [
        Peer::nbdkit(&["-r", "file", &path]),
        Peer::nbdkit(&["-r", "--mask-handshake=0", "file", &path]),
        Peer::qemu_nbd(&["-r", "-f", "raw", &path]),
    ] {
        let error = refused(&secure(&peer, &pki.client, "")).await;
        assert!(matches!(error, NbdError::Protocol(_)), "{error:?}");
        let listed = list_contexts(&secure(&peer, &pki.client, ""), vec![]).await;
        assert!(listed.is_err(), "no contexts is another answer than no TLS");
    }
}
