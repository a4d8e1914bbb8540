//! Clients that send nonsense cost themselves their connection.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_export::proxy::JobRequest;
use tests::daemon::{Proxy, request};
use tests::needs;

use super::Server;

fn post(body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[test]
fn nonsense_is_refused_and_the_daemon_lives() {
    needs!("nbdkit");
    let server = Server::new(1 << 20, &[], &[]);
    let mut proxy = Proxy::start("", &server.table("web", ""));
    let good = serde_json::to_value(request("web", "x", "vm")).unwrap();
    let with = |name: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed[name] = value;
        post(&changed.to_string())
    };
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for (bytes, status) in [
        (
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            "404",
        ),
        (
            b"GET /v1/jobs/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            "404",
        ),
        (
            b"GET /v1/jobs/18446744073709551616 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            "404",
        ),
        (
            b"PUT /v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            "405",
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "400"),
        (post(""), "400"),
        (post("null"), "400"),
        (post(&deep), "400"),
        (with("volume", "../../etc/passwd".into()), "400"),
        (with("volume", "..".into()), "400"),
        (with("volume", "x".repeat(101).into()), "400"),
        (with("export", "x".repeat(5000).into()), "400"),
        (with("export", "".into()), "400"),
        (with("key", "not a UUID".into()), "400"),
        (with("audit", 101.into()), "400"),
        (with("require-direct", (-1).into()), "400"),
        (with("output", "/etc/passwd".into()), "400"),
        (with("host", "other".into()), "403"),
        (with("host", "".into()), "403"),
        (with("host", "../web".into()), "403"),
        (post(&format!("\"{}\"", "x".repeat(70_000))), "413"),
    ] {
        let answer = proxy.raw(&bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{shown}: {answer}"
        );
        assert!(proxy.lives(), "{shown}");
    }
    assert_eq!(
        proxy.ask(async |daemon| daemon.jobs().await).unwrap().jobs.len(),
        0
    );
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
    assert_eq!(
        std::fs::read_dir(proxy.path("images")).unwrap().count(),
        1,
        "the lock alone"
    );
}

/// As many silent connections as there may be, and more: they are cut, and those who have something to say are heard.
#[test]
fn silent_clients_do_not_keep_others_out_for_long() {
    needs!("nbdkit");
    let server = Server::new(1 << 20, &[], &[]);
    let proxy = Proxy::start("", &server.table("web", ""));
    let silent: Vec<UnixStream> = (0..70)
        .map(|number| {
            let mut stream = UnixStream::connect(proxy.path("control")).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost").unwrap();
            }
            stream
        })
        .collect();
    let begun = Instant::now();
    let job: JobRequest = request("web", "x", "vm");
    proxy.submit(&job).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(100),
        "{:?}",
        begun.elapsed()
    );
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).ok();
    }
}
