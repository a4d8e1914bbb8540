//! Our NBD client against servers that others wrote.

mod faults;
mod nbd_crate;
mod nbdkit;
mod qemu;

use std::fs::File;
use std::os::unix::fs::FileExt;

use nbd_export::proto::ContextName;
use proxy_client::nbd::{Connection, NbdError};
use tempfile::TempDir;
use volmap::range::ByteRange;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
const ALLOCATION: &str = "base:allocation";

/// A sparse raw file, and what it holds.
struct Disk {
    directory: TempDir,
    bytes: Vec<u8>,
}

impl Disk {
    /// Data in the first and every fourth MiB, with data that differ everywhere; holes between.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        let file = File::create(directory.path().join("disk")).unwrap();
        file.set_len(SIZE).unwrap();
        for start in (0..SIZE).step_by(usize::try_from(4 * MIB).unwrap()) {
            let at = usize::try_from(start).unwrap();
            let piece = &mut bytes[at..at + usize::try_from(MIB).unwrap()];
            for (n, word) in piece.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *word = (start + 8 * n as u64 + 1).to_be_bytes();
            }
            file.write_all_at(piece, start).unwrap();
        }
        Self { directory, bytes }
    }

    fn path(&self) -> String {
        self.directory.path().join("disk").to_str().unwrap().to_owned()
    }

    fn at(&self, offset: u64, length: u64) -> &[u8] {
        &self.bytes[usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()]
    }
}

fn contexts(names: &[&str]) -> Vec<ContextName> {
    names.iter().map(|name| ContextName::new(name).unwrap()).collect()
}

fn whole() -> ByteRange {
    ByteRange::new(0, SIZE).unwrap()
}

/// Reads all of the disk in pieces, several at once.
async fn assert_reads(connection: &Connection, disk: &Disk) {
    assert_eq!(connection.session().export.size, SIZE);
    let mut tasks = Vec::new();
    for offset in (0..SIZE).step_by(usize::try_from(MIB).unwrap()) {
        tasks.push(async move { (offset, connection.read(offset, 1 << 20).await) });
    }
    for (offset, read) in futures_util::future::join_all(tasks).await {
        assert!(read.unwrap() == disk.at(offset, MIB), "at {offset}");
    }
    // Over the edge of data and hole, and the last byte.
    for (offset, length) in [(MIB - 3, 6), (4 * MIB - 5, 10), (SIZE - 1, 1)] {
        let read = connection
            .read(offset, u32::try_from(length).unwrap())
            .await
            .unwrap();
        assert_eq!(read, disk.at(offset, length));
    }
}

/// Walks `base:allocation`: what it calls zero is zero, and it is said of every hole.
async fn assert_allocation(connection: &Connection, disk: &Disk) {
    let (mut at, mut zeroes) = (0, 0);
    while at < SIZE {
        let range = ByteRange::from_bounds(at, SIZE).unwrap();
        let statuses = connection.block_status(range, None).await.unwrap();
        let status = statuses
            .iter()
            .find(|status| connection.session().context_id(ALLOCATION) == Some(status.context))
            .unwrap();
        for extent in &status.descriptors {
            if extent.status & 2 != 0 {
                assert!(disk.at(at, extent.length).iter().all(|byte| *byte == 0));
                zeroes += extent.length;
            }
            at += extent.length;
        }
    }
    assert_eq!((at, zeroes), (SIZE, SIZE / 4 * 3));
}

fn server_errno(error: NbdError) -> nbd_export::proto::Errno {
    match error {
        NbdError::Server(error) => error.errno,
        other => panic!("{other:?}"),
    }
}
