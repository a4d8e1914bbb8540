//! Attackers in between, who have no certificate: all they can do is to break the connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nbd_export::proto::constants::{OptionCode, OptionReplyCode};
use nbd_export::proto::option::{encode_option, encode_option_reply};
use nbd_export::uri::NbdUri;
use proxy_client::nbd::{Connection, NbdError, list_exports};
use tests::pki::Pki;

use super::Served;

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

/// A server that says its lines, one after each thing that it hears, and gives back all that it heard.
fn scripted(lines: Vec<Vec<u8>>) -> (u16, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut heard = Vec::new();
        for line in lines {
            stream.write_all(&line).unwrap();
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(count) if count > 0 => heard.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
        drop(stream);
        heard
    });
    (port, heard)
}

fn reply(option: OptionCode, reply: OptionReplyCode, data: &[u8]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    encode_option_reply(option, reply, data, &mut out);
    out.to_vec()
}

/// What a client may send outside TLS: its flags, STARTTLS, and a goodbye.
fn assert_nothing_asked(heard: &[u8]) {
    let mut allowed = vec![0, 0, 0, 3];
    let mut option = |code| {
        let mut out = bytes::BytesMut::new();
        encode_option(code, b"", &mut out);
        allowed.extend_from_slice(&out);
    };
    option(OptionCode::STARTTLS);
    option(OptionCode::ABORT);
    assert!(allowed.starts_with(heard), "{heard:x?}");
}

#[tokio::test]
async fn a_client_that_wants_tls_asks_for_nothing_without() {
    let pki = Pki::new();
    let ack = reply(OptionCode::STARTTLS, OptionReplyCode::ACK, b"");
    let refusals = [
        OptionReplyCode::ERR_UNSUP,
        OptionReplyCode::ERR_POLICY,
        OptionReplyCode::ERR_INVALID,
        OptionReplyCode::ERR_PLATFORM,
        OptionReplyCode::ERR_TLS_REQD,
        OptionReplyCode::ERR_SHUTDOWN,
    ];
    let mut scripts: Vec<Vec<Vec<u8>>> = refusals
        .iter()
        .map(|code| vec![GREETING.to_vec(), reply(OptionCode::STARTTLS, *code, b"no")])
        .collect();
    // No fixed newstyle; oldstyle, with its size; a close at STARTTLS.
    scripts.push(vec![b"NBDMAGICIHAVEOPT\0\0".to_vec()]);
    scripts.push(vec![
        [&b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53"[..], &[0; 136]].concat(),
    ]);
    scripts.push(vec![GREETING.to_vec()]);
    // An ACK with more behind it, which would be taken for what the server says inside (CVE-2021-3716).
    let injected = reply(OptionCode::EXTENDED_HEADERS, OptionReplyCode::ERR_UNSUP, b"");
    scripts.push(vec![GREETING.to_vec(), [ack.clone(), injected].concat()]);
    for script in scripts {
        let shown = format!("{script:x?}");
        let (port, heard) = scripted(script);
        let uri = format!("nbds://127.0.0.1:{port}/?tls-certificates={}", pki.client.text());
        let uri: NbdUri = uri.parse().unwrap();
        let connected = Connection::connect(&uri, vec![]).await;
        assert!(
            matches!(&connected, Err(NbdError::Protocol(_) | NbdError::Closed)),
            "{shown}: {:?}",
            connected.err()
        );
        assert_nothing_asked(&heard.join().unwrap());
    }
    // An ACK, and no TLS behind it.
    for answer in [&b"NBD"[..], &reply(OptionCode::LIST, OptionReplyCode::ACK, b"")] {
        let (port, heard) = scripted(vec![GREETING.to_vec(), ack.clone(), answer.to_vec()]);
        let uri = format!("nbds://127.0.0.1:{port}/?tls-certificates={}", pki.client.text());
        let listed = list_exports(&uri.parse().unwrap()).await;
        assert!(matches!(listed, Err(NbdError::Tls(_))), "{listed:?}");
        // A TLS handshake record.
        let heard = heard.join().unwrap();
        assert_eq!(heard[20..22], [22, 3], "{heard:x?}");
    }
}

/// A client of a server that has said hello.
fn greeted(served: &Served) -> TcpStream {
    let uri: NbdUri = served.uri().parse().unwrap();
    let nbd_export::uri::NbdAddress::Tcp { host, port } = uri.address else {
        panic!("{uri}");
    };
    let mut stream = TcpStream::connect((host.as_str(), port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream
}

#[test]
fn a_server_takes_nothing_that_comes_behind_starttls_in_the_clear() {
    let pki = Pki::new();
    let served = Served::tcp(&pki, &[]);
    for behind in [
        OptionCode::STRUCTURED_REPLY,
        OptionCode::LIST,
        OptionCode::STARTTLS,
    ] {
        let mut stream = greeted(&served);
        let mut sent = bytes::BytesMut::new();
        encode_option(OptionCode::STARTTLS, b"", &mut sent);
        encode_option(behind, b"", &mut sent);
        stream.write_all(&sent).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end: there were bytes that nobody read.
        let _ = stream.read_to_end(&mut answer);
        // Where the bytes came in two pieces, STARTTLS was taken, and what followed was no TLS.
        let ack = reply(OptionCode::STARTTLS, OptionReplyCode::ACK, b"");
        let rest = answer.strip_prefix(&ack[..]).unwrap_or(&answer);
        assert!(rest.is_empty() || rest[0] == 21, "{answer:x?}");
    }
}

#[test]
fn a_client_that_does_not_go_on_with_tls_is_not_waited_for() {
    let pki = Pki::new();
    let served = Served::tcp(&pki, &["--handshake-timeout", "4"]);
    let mut stream = greeted(&served);
    let mut sent = bytes::BytesMut::new();
    encode_option(OptionCode::STARTTLS, b"", &mut sent);
    stream.write_all(&sent).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, reply(OptionCode::STARTTLS, OptionReplyCode::ACK, b""));
}
