//! nbdkit: structured replies, simple replies, every plugin and filter.

use nbd_export::proto::HeaderStyle;
use proxy_client::nbd::{list_contexts, list_exports};
use tests::needs;
use tests::peer::Peer;

use super::*;

#[tokio::test]
async fn file_with_structured_replies() {
    needs!("nbdkit");
    let disk = Disk::new();
    let peer = Peer::nbdkit(&["-r", "file", &disk.path()]);
    let listed = list_contexts(&peer.uri(""), vec![]).await.unwrap();
    assert_eq!(listed, contexts(&[ALLOCATION]));
    let connection = Connection::connect(&peer.uri(""), contexts(&[ALLOCATION]))
        .await
        .unwrap();
    assert_eq!(connection.session().style, HeaderStyle::Structured);
    assert_reads(&connection, &disk).await;
    assert_allocation(&connection, &disk).await;
    connection.disconnect().await;
}

#[tokio::test]
async fn file_with_simple_replies() {
    needs!("nbdkit");
    let disk = Disk::new();
    let peer = Peer::nbdkit(&["-r", "--no-sr", "file", &disk.path()]);
    let connection = Connection::connect(&peer.uri(""), contexts(&[ALLOCATION]))
        .await
        .unwrap();
    assert_eq!(connection.session().style, HeaderStyle::Simple);
    assert_eq!(connection.session().contexts, []);
    assert_reads(&connection, &disk).await;
    assert!(matches!(
        connection.block_status(whole(), None).await,
        Err(NbdError::Unfit(_))
    ));
}

#[tokio::test]
async fn a_server_without_fixed_newstyle() {
    needs!("nbdkit");
    let disk = Disk::new();
    let peer = Peer::nbdkit(&["-r", "--mask-handshake=0", "file", &disk.path()]);
    let connection = Connection::connect(&peer.uri(""), contexts(&[ALLOCATION]))
        .await
        .unwrap();
    assert_reads(&connection, &disk).await;
}

#[tokio::test]
async fn the_largest_export() {
    needs!("nbdkit");
    let size = u64::try_from(i64::MAX).unwrap();
    let peer = Peer::nbdkit(&["-r", "pattern", &size.to_string()]);
    let connection = Connection::connect(&peer.uri(""), contexts(&[ALLOCATION]))
        .await
        .unwrap();
    assert_eq!(connection.session().export.size, size);
    for offset in [0, 1 << 33, size - 15] {
        // Its bytes are the offsets of its words.
        let read = connection.read(offset & !7, 8).await.unwrap();
        assert_eq!(read, (offset & !7).to_be_bytes()[..]);
    }
    let range = ByteRange::from_bounds(size - MIB, size).unwrap();
    let statuses = connection.block_status(range, None).await.unwrap();
    assert_eq!(statuses[0].covered(), MIB);
}

#[tokio::test]
async fn block_sizes_are_kept() {
    needs!("nbdkit");
    let disk = Disk::new();
    let peer = Peer::nbdkit(&[
        "-r",
        "--filter=blocksize-policy",
        "file",
        &disk.path(),
        "blocksize-minimum=4096",
        "blocksize-preferred=65536",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ]);
    let connection = Connection::connect(&peer.uri(""), vec![]).await.unwrap();
    let block = connection.session().export.block;
    assert_eq!(
        (block.minimum, block.preferred, block.maximum),
        (4096, 65536, 1 << 20)
    );
    for (offset, length) in [(512, 4096), (0, 512), (0, (1 << 20) + 4096)] {
        assert!(matches!(
            connection.read(offset, length).await,
            Err(NbdError::Unfit(_))
        ));
    }
    assert_eq!(connection.read(4096, 1 << 20).await.unwrap(), disk.at(4096, MIB));
}

#[tokio::test]
async fn many_exports_are_listed() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&[
        "eval",
        "list_exports=echo NAMES; for n in $(seq 2000); do echo export$n; done",
        "get_size=echo 512",
        "pread=exit 1",
    ]);
    let exports = list_exports(&peer.uri("")).await.unwrap();
    assert_eq!(exports.len(), 2000);
    assert_eq!(exports[1999].name.as_str(), "export2000");
}
