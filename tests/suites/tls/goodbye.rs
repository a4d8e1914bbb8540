//! Ends inside TLS are said to be ends: a peer that hears no close_notify has to think that somebody cut the line.

use nbd_export::proto::ExportName;
use nbd_export::proto::constants::{InfoCode, OptionCode, OptionReplyCode};
use nbd_export::proto::option::{InfoRequest, encode_option, encode_option_reply};
use nbd_export::tls::{ClientTls, ServerTls};
use nbd_export::uri::{NbdAddress, NbdUri};
use proxy_client::nbd::{Connection, list_exports};
use tests::pki::Pki;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Duration, timeout};
use tokio_rustls::client::TlsStream;

use super::Served;

const PATIENCE: Duration = Duration::from_secs(30);

/// A client's stream inside TLS, before its first option.
async fn inside(served: &Served, pki: &Pki) -> TlsStream<TcpStream> {
    let uri: NbdUri = served.uri().parse().unwrap();
    let NbdAddress::Tcp { host, port } = uri.address else {
        panic!("a Unix socket");
    };
    let mut stream = TcpStream::connect((host.as_str(), port)).await.unwrap();
    let mut heard = [0; 38];
    stream.read_exact(&mut heard[..18]).await.unwrap();
    let mut sent = bytes::BytesMut::from(&[0, 0, 0, 3][..]);
    encode_option(OptionCode::STARTTLS, b"", &mut sent);
    stream.write_all(&sent).await.unwrap();
    stream.read_exact(&mut heard[18..]).await.unwrap();
    let tls = ClientTls::load(pki.client.path()).unwrap();
    tls.connect(stream, "127.0.0.1").await.unwrap()
}

/// rustls takes an end without close_notify for an error.
async fn assert_ends_properly(stream: &mut (impl AsyncRead + Unpin), what: &str) {
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    ended.unwrap_or_else(|error| panic!("{what}: {error}"));
}

fn go() -> bytes::BytesMut {
    let (mut data, mut option) = (bytes::BytesMut::new(), bytes::BytesMut::new());
    let request = InfoRequest {
        name: ExportName::new("vm").unwrap(),
        infos: vec![InfoCode::EXPORT],
    };
    request.encode(&mut data);
    encode_option(OptionCode::GO, &data, &mut option);
    option
}

#[tokio::test]
async fn the_server_says_goodbye_whatever_it_ends_of() {
    let pki = Pki::new();
    let served = Served::tcp(&pki, &[]);
    let mut abort = bytes::BytesMut::new();
    encode_option(OptionCode::ABORT, b"", &mut abort);
    let disconnect = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0, 0, 2], &[0; 20]].concat();
    let mut unknown = bytes::BytesMut::new();
    encode_option(OptionCode::EXPORT_NAME, b"nothing", &mut unknown);
    for (what, sent) in [
        ("a goodbye", abort.to_vec()),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("an unknown export", unknown.to_vec()),
        ("DISC", [&go()[..], &disconnect].concat()),
        ("a request that is none", [&go()[..], &[7; 28]].concat()),
    ] {
        let mut stream = inside(&served, &pki).await;
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap();
        assert_ends_properly(&mut stream, what).await;
    }
    let mut stream = inside(&served, &pki).await;
    stream.write_all(&go()).await.unwrap();
    stream.flush().await.unwrap();
    stream.read_exact(&mut [0; 20]).await.unwrap();
    let ended = tokio::task::spawn_blocking(|| served.host.terminate());
    assert_ends_properly(&mut stream, "a server that shuts down").await;
    drop(stream);
    assert!(ended.await.unwrap().success());
}

/// For its time, for its place, and because the server ends.
#[tokio::test]
async fn the_server_says_goodbye_to_handshakes_that_it_gives_up() {
    let pki = Pki::new();
    let served = Served::tcp(&pki, &["--handshake-timeout", "6"]);
    let mut slow = inside(&served, &pki).await;
    assert_ends_properly(&mut slow, "a handshake that took too long").await;

    let served = Served::tcp(&pki, &[]);
    let mut oldest = inside(&served, &pki).await;
    let uri: NbdUri = served.uri().parse().unwrap();
    let NbdAddress::Tcp { host, port } = uri.address else {
        panic!("a Unix socket");
    };
    let mut crowd = Vec::new();
    for _ in 0..600 {
        crowd.push(TcpStream::connect((host.as_str(), port)).await.unwrap());
    }
    assert_ends_properly(&mut oldest, "one that makes room for newer ones").await;
    drop(crowd);

    let mut last = inside(&served, &pki).await;
    let mut told = inside(&served, &pki).await;
    let ended = tokio::task::spawn_blocking(|| served.host.terminate());
    while list(&mut told).await != OptionReplyCode::ERR_SHUTDOWN {}
    assert_ends_properly(&mut told, "one that was told of the end").await;
    assert_ends_properly(&mut last, "one that the end of the server meets").await;
    drop((told, last));
    assert!(ended.await.unwrap().success());
}

/// The last answer to LIST.
async fn list(stream: &mut TlsStream<TcpStream>) -> OptionReplyCode {
    let mut option = bytes::BytesMut::new();
    encode_option(OptionCode::LIST, b"", &mut option);
    stream.write_all(&option).await.unwrap();
    stream.flush().await.unwrap();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).await.unwrap();
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        stream.read_exact(&mut vec![0; word(16) as usize]).await.unwrap();
        let code = OptionReplyCode(word(12));
        if code == OptionReplyCode::ACK || code.is_error() {
            return code;
        }
    }
}

fn reply(option: OptionCode, code: OptionReplyCode, data: &[u8]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    encode_option_reply(option, code, data, &mut out);
    out.to_vec()
}

/// A server that answers each message inside TLS with a line, and then listens to the end, or cuts the line where it is told to.
async fn scripted(pki: &Pki, lines: Vec<Vec<u8>>, cuts: bool) -> (NbdUri, JoinHandle<std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = ServerTls::load(pki.server.path()).unwrap();
    let ended = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").await?;
        stream.read_exact(&mut [0; 20]).await?;
        let ack = reply(OptionCode::STARTTLS, OptionReplyCode::ACK, b"");
        stream.write_all(&ack).await?;
        let accepted = tls.accept(stream).await;
        let (mut stream, names) = accepted.map_err(|(error, _)| std::io::Error::other(error))?;
        assert_eq!(names, ["proxy"]);
        for line in lines {
            let mut option = [0; 16];
            stream.read_exact(&mut option).await?;
            let length = u32::from_be_bytes(*option.last_chunk().unwrap());
            stream.read_exact(&mut vec![0; length as usize]).await?;
            stream.write_all(&line).await?;
            stream.flush().await?;
        }
        if !cuts {
            stream.read_to_end(&mut Vec::new()).await?;
        }
        Ok(())
    });
    let uri = format!("nbds://127.0.0.1:{port}/?tls-certificates={}", pki.client.text());
    (uri.parse().unwrap(), ended)
}

/// An export of a MiB in the simplest style.
fn simple_export() -> Vec<Vec<u8>> {
    let (size, flags) = ((1_u64 << 20).to_be_bytes(), [0, 1]);
    let info = [&[0, 0][..], &size, &flags].concat();
    vec![
        reply(OptionCode::EXTENDED_HEADERS, OptionReplyCode::ERR_UNSUP, b""),
        reply(OptionCode::STRUCTURED_REPLY, OptionReplyCode::ERR_UNSUP, b""),
        [
            reply(OptionCode::GO, OptionReplyCode::INFO, &info),
            reply(OptionCode::GO, OptionReplyCode::ACK, b""),
        ]
        .concat(),
    ]
}

#[tokio::test]
async fn the_client_says_goodbye_whatever_it_ends_of() {
    let pki = Pki::new();
    let (uri, ended) = scripted(
        &pki,
        vec![reply(OptionCode::LIST, OptionReplyCode::ACK, b"")],
        false,
    )
    .await;
    list_exports(&uri).await.unwrap();
    ended.await.unwrap().unwrap();

    // A reply to nothing ends it as well.
    let (uri, ended) = scripted(
        &pki,
        vec![reply(OptionCode::GO, OptionReplyCode::ACK, b"")],
        false,
    )
    .await;
    list_exports(&uri).await.unwrap_err();
    ended.await.unwrap().unwrap();

    let (uri, ended) = scripted(&pki, simple_export(), false).await;
    Connection::connect(&uri, vec![])
        .await
        .unwrap()
        .disconnect()
        .await;
    ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cut_is_no_end_to_the_client() {
    let pki = Pki::new();
    let (uri, ended) = scripted(&pki, simple_export(), true).await;
    let connection = Connection::connect(&uri, vec![]).await.unwrap();
    ended.await.unwrap().unwrap();
    let error = connection.read(0, 512).await.unwrap_err();
    assert!(error.is_connection_lost(), "{error:?}");
}
