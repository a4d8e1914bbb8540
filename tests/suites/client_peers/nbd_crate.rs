//! The server of the `nbd` crate: it knows EXPORT_NAME and simple replies, and drops a client that says much else.

use std::io::Cursor;
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use bytes::Bytes;
use nbd::server::{Export, handshake, transmission};
use nbd_export::proto::{HeaderStyle, ProtocolError, TransmissionFlags};
use proxy_client::nbd::{list_contexts, list_exports};

use super::*;

/// Serves connections one by one, `count` of them; each begins with `bytes`.
fn serve(bytes: Vec<u8>, count: usize) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("nbd://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        for _ in 0..count {
            let (stream, _) = listener.accept().unwrap();
            // A client that leaves in the handshake is an error there, and no concern here.
            let _ = serve_one(stream, bytes.clone());
        }
    });
    (uri, server)
}

fn serve_one(mut stream: TcpStream, bytes: Vec<u8>) -> std::io::Result<()> {
    let size = bytes.len() as u64;
    handshake(&mut stream, |name| match name {
        "disk" => Ok(Export {
            size,
            send_flush: true,
            ..Export::<()>::default()
        }),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    })?;
    transmission(&mut stream, Cursor::new(bytes))
}

#[tokio::test]
async fn our_client_reads_and_writes() {
    let disk = Disk::new();
    let (uri, server) = serve(disk.bytes.clone(), 1);
    let connection = Connection::connect(&format!("{uri}disk").parse().unwrap(), contexts(&[ALLOCATION]))
        .await
        .unwrap();
    assert_eq!(connection.session().style, HeaderStyle::Simple);
    assert!(connection.session().offers(TransmissionFlags::SEND_FLUSH));
    assert_reads(&connection, &disk).await;
    connection
        .write(9, Bytes::from_static(b"new"), false)
        .await
        .unwrap();
    connection.flush().await.unwrap();
    assert_eq!(connection.read(8, 5).await.unwrap()[1..4], *b"new");
    connection.disconnect().await;
    server.join().unwrap();
}

#[tokio::test]
async fn what_it_cannot_do_is_a_typed_error() {
    let (uri, server) = serve(vec![0; 512], 3);
    let uri = |export: &str| format!("{uri}{export}").parse().unwrap();
    let refused = Connection::connect(&uri("nothing"), vec![]).await;
    assert!(matches!(
        refused.map(|_| ()),
        Err(NbdError::Protocol(ProtocolError::ExportNameRefused))
    ));
    assert_eq!(list_exports(&uri("")).await.unwrap()[0].name.as_str(), "rustnbd");
    assert!(list_contexts(&uri("disk"), vec![]).await.unwrap().is_empty());
    server.join().unwrap();
}
