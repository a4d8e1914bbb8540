//! Hosts see their own jobs and nobody else's, and prove who they are.

use nbd_export::proxy::{JobLimits, ProxyError, ProxyUrl};
use tests::daemon::{Proxy, request};
use tests::needs;
use tests::pki::{Pki, Subject, TlsDirectory};

use super::Server;

fn status(refused: Result<impl std::fmt::Debug, ProxyError>) -> u16 {
    match refused.unwrap_err() {
        ProxyError::Refused { status, .. } => status,
        other => panic!("{other:?}"),
    }
}

/// A daemon that listens on TCP, for a host and for operators at its socket.
#[test]
fn silent_strangers_keep_nobody_out() {
    needs!("nbdkit");
    let pki = Pki::new();
    let server = Server::new(1 << 20, &[], &[]);
    let port = free_port();
    let tables = format!(
        "tcp = [\"127.0.0.1:{port}\"]\ntls-dir = {:?}\n{}",
        pki.server.text(),
        server.table("web", "clients = [\"web\"]")
    );
    let proxy = Proxy::start("", &tables);
    let silent: Vec<_> = (0..150)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    let web =
        TlsDirectory::trusting(&pki.authority).with_client(&pki.authority.issue(Subject::client("web")));
    let web = std::path::PathBuf::from(web.text());
    let https = ProxyUrl::Https {
        host: "localhost".into(),
        port,
    };
    let begun = std::time::Instant::now();
    proxy.ask(async |daemon| daemon.jobs().await).unwrap();
    proxy
        .ask_at(https, Some(&web), async |daemon| daemon.jobs().await)
        .unwrap();
    // A handshake that never comes is waited for twice as long.
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    drop(silent);
}

pub(super) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn a_host_is_known_by_its_certificate() {
    needs!("nbdkit");
    let pki = Pki::new();
    let server = Server::new(1 << 20, &[], &[]);
    let port = free_port();
    let tables = format!(
        "tcp = [\"127.0.0.1:{port}\"]\ntls-dir = {:?}\n{}{}",
        pki.server.text(),
        server.table("web", "clients = [\"web\"]"),
        server.table("db", "clients = [\"db\"]")
    );
    let proxy = Proxy::start("operators = [\"ops\", \"unix\"]", &tables);
    let https = ProxyUrl::Https {
        host: "localhost".into(),
        port,
    };
    let of = |name: &str| {
        TlsDirectory::trusting(&pki.authority).with_client(&pki.authority.issue(Subject::client(name)))
    };
    let (web, db, ops, other) = (of("web"), of("db"), of("ops"), of("other"));
    let path = |directory: &TlsDirectory| std::path::PathBuf::from(directory.text());

    let job = proxy
        .ask_at(https.clone(), Some(&path(&web)), async |daemon| {
            daemon.submit(&request("web", "x", "vm")).await
        })
        .unwrap();
    for stranger in [&db, &other] {
        proxy.ask_at(https.clone(), Some(&path(stranger)), async |daemon| {
            assert_eq!(status(daemon.submit(&request("web", "x", "vm")).await), 403);
            assert_eq!(status(daemon.job(job.id).await), 404);
            assert_eq!(status(daemon.cancel(job.id).await), 404);
            assert_eq!(status(daemon.status().await), 403);
            assert_eq!(daemon.jobs().await.unwrap().jobs, []);
        });
    }
    for friend in [&web, &ops] {
        proxy.ask_at(https.clone(), Some(&path(friend)), async |daemon| {
            assert_eq!(daemon.job(job.id).await.unwrap().id, job.id);
            assert_eq!(daemon.jobs().await.unwrap().jobs.len(), 1);
        });
    }
    proxy.ask_at(https.clone(), Some(&path(&web)), async |daemon| {
        assert_eq!(status(daemon.limit(job.id, &JobLimits::default()).await), 403);
    });
    proxy.ask_at(https.clone(), Some(&path(&ops)), async |daemon| {
        assert!(daemon.limit(job.id, &JobLimits::default()).await.is_ok());
        assert!(daemon.status().await.is_ok());
    });

    // A certificate of somebody else's authority, and none at all.
    let foreign = Pki::new();
    let foreign =
        TlsDirectory::trusting(&pki.authority).with_client(&foreign.authority.issue(Subject::client("web")));
    for unknown in [foreign, TlsDirectory::trusting(&pki.authority)] {
        proxy.ask_at(https.clone(), Some(&path(&unknown)), async |daemon| {
            assert!(daemon.jobs().await.is_err());
        });
    }
    // In the clear nobody is answered.
    use std::io::{Read, Write};
    let mut clear = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    clear
        .write_all(b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    clear.read_to_end(&mut answer).ok();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}
