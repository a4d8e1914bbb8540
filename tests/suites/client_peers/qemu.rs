//! qemu-nbd: extended headers, the payload filter, contexts of its own.

use std::process::Command;

use bytes::Bytes;
use nbd_export::proto::constants::OptionReplyCode;
use nbd_export::proto::{HeaderStyle, ProtocolError, TransmissionFlags};
use proxy_client::nbd::{list_contexts, list_exports};
use tests::needs;
use tests::peer::Peer;

use super::*;

#[tokio::test]
async fn raw_file_with_extended_headers() {
    needs!("qemu-nbd");
    let disk = Disk::new();
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", "-x", "vm", "-D", "a disk", &disk.path()]);
    let connection = Connection::connect(&peer.uri("vm"), contexts(&[ALLOCATION]))
        .await
        .unwrap();
    let session = connection.session();
    assert_eq!(session.style, HeaderStyle::Extended);
    assert_eq!(session.export.description, "a disk");
    assert_eq!(session.export.block.maximum, 32 << 20);
    assert!(session.offers(TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN));
    assert_reads(&connection, &disk).await;
    assert_allocation(&connection, &disk).await;
    connection.disconnect().await;
}

#[tokio::test]
async fn compressed_image_and_a_context_of_qemu() {
    needs!("qemu-nbd", "qemu-img");
    let disk = Disk::new();
    let image = format!("{}.qcow2", disk.path());
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-c", &disk.path(), &image])
        .status()
        .unwrap();
    assert!(converted.success());
    let peer = Peer::qemu_nbd(&["-r", "-A", "-f", "qcow2", &image]);
    let depth = "qemu:allocation-depth";
    let listed = list_contexts(&peer.uri(""), contexts(&["qemu:", "base:"]))
        .await
        .unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    let connection = Connection::connect(&peer.uri(""), contexts(&[depth, ALLOCATION, "x-none:x"]))
        .await
        .unwrap();
    assert_eq!(connection.session().contexts.len(), 2);
    assert_reads(&connection, &disk).await;
    assert_allocation(&connection, &disk).await;
    // One context alone.
    assert!(
        connection
            .session()
            .offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    );
    let id = connection.session().context_id(depth).unwrap();
    let statuses = connection.block_status(whole(), Some(vec![id])).await.unwrap();
    assert_eq!(statuses.len(), 1);
    assert_eq!(statuses[0].context, id);
    assert_eq!(statuses[0].descriptors[0].status, 1);
}

#[tokio::test]
async fn writing() {
    needs!("qemu-nbd");
    let mut disk = Disk::new();
    let peer = Peer::qemu_nbd(&["-f", "raw", "--discard=unmap", &disk.path()]);
    let connection = Connection::connect(&peer.uri(""), contexts(&[ALLOCATION]))
        .await
        .unwrap();
    let at = usize::try_from(MIB + 7).unwrap();
    connection
        .write(MIB + 7, Bytes::from_static(b"hello"), true)
        .await
        .unwrap();
    disk.bytes[at..at + 5].copy_from_slice(b"hello");
    connection
        .write_zeroes(ByteRange::new(4 * MIB, MIB).unwrap(), true)
        .await
        .unwrap();
    disk.bytes[4 << 20..5 << 20].fill(0);
    connection
        .trim(ByteRange::new(8 * MIB, MIB).unwrap())
        .await
        .unwrap();
    connection.flush().await.unwrap();
    disk.bytes[8 << 20..9 << 20].fill(0);
    assert_reads(&connection, &disk).await;
    connection.disconnect().await;
    assert!(std::fs::read(disk.path()).unwrap() == disk.bytes);
}

#[tokio::test]
async fn exports_are_listed_and_unknown_ones_refused() {
    needs!("qemu-nbd");
    let disk = Disk::new();
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", "-x", "vm", "-D", "a disk", &disk.path()]);
    let exports = list_exports(&peer.uri("")).await.unwrap();
    assert_eq!(exports.len(), 1);
    assert_eq!(
        (exports[0].name.as_str(), exports[0].description.as_str()),
        ("vm", "a disk")
    );
    for names in [&[ALLOCATION][..], &[]] {
        let refused = Connection::connect(&peer.uri("nothing"), contexts(names)).await;
        let Err(NbdError::Protocol(ProtocolError::Refused(refused))) = refused.map(|_| ()) else {
            panic!("not refused");
        };
        assert_eq!(refused.reply, OptionReplyCode::ERR_UNKNOWN);
        assert!(!refused.text.as_str().is_empty());
    }
    // The server serves on.
    assert!(Connection::connect(&peer.uri("vm"), vec![]).await.is_ok());
}
