//! Our client backs up from servers that know nothing of frozen images: every image equals the source.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::disk::Scratch;
use tests::peer::Peer;
use tests::rust_nbd::RustNbd;
use tests::{digest, disk, image, needs, program, volume};

const MIB: u64 = 1 << 20;

/// A directory with a volume in it.
struct Source {
    directory: Scratch,
    volume: PathBuf,
}

impl Source {
    fn new(make: impl FnOnce(&Path)) -> Self {
        let directory = disk::scratch();
        let volume = directory.path().join("volume");
        make(&volume);
        Self { directory, volume }
    }

    /// Backs up, holds the image against the volume, and gives back the report.
    fn assert_backed_up(&self, uri: &str) -> Value {
        let image = self.directory.path().join("image.vbi.zst");
        let report = program::backup(&[uri, "--output", image.to_str().unwrap()]);
        image::assert_holds(&image, &self.volume);
        let size = std::fs::metadata(&self.volume).unwrap().len();
        assert_eq!(report["size"], size, "{report}");
        let bytes = |name: &str| report[name].as_u64().unwrap();
        assert_eq!(bytes("bytes_direct"), 0);
        assert_eq!(bytes("bytes_nbd") + bytes("bytes_zero"), size, "{report}");
        assert_eq!(report["frozen"], Value::Null);
        std::fs::remove_file(image).unwrap();
        report
    }
}

/// How many bytes of [`volume::motley`] are data at the most, with block-wide holes around them.
const MOTLEY_DATA: u64 = 8 * MIB;

fn assert_holes_were_not_read(report: &Value) {
    assert!(report["bytes_nbd"].as_u64().unwrap() < MOTLEY_DATA, "{report}");
}

#[test]
fn qemu_nbd_raw_with_extended_headers() {
    needs!("qemu-nbd", "zstd");
    let source = Source::new(volume::motley);
    let peer = Peer::qemu_nbd(&["-r", "-f", "raw", source.volume.to_str().unwrap()]);
    assert_holes_were_not_read(&source.assert_backed_up(&peer.uri_text("")));
}

#[test]
fn qemu_nbd_qcow2_with_holes() {
    needs!("qemu-nbd", "qemu-img", "zstd");
    let source = Source::new(volume::motley);
    let qcow2 = source.directory.path().join("volume.qcow2");
    let (raw, converted) = (source.volume.to_str().unwrap(), qcow2.to_str().unwrap());
    disk::run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", raw, converted],
    );
    let peer = Peer::qemu_nbd(&["-r", "-f", "qcow2", converted]);
    assert_holes_were_not_read(&source.assert_backed_up(&peer.uri_text("")));
}

#[test]
fn nbdkit_file() {
    needs!("nbdkit", "zstd");
    let source = Source::new(volume::motley);
    let peer = Peer::nbdkit_file(&[], &source.volume, &[]);
    assert_holes_were_not_read(&source.assert_backed_up(&peer.uri_text("")));
}

#[test]
fn nbdkit_without_extents() {
    needs!("nbdkit", "zstd");
    let source = Source::new(volume::motley);
    let peer = Peer::nbdkit_file(&["--filter=noextents"], &source.volume, &[]);
    source.assert_backed_up(&peer.uri_text(""));
}

/// Without structured replies there is no block status either.
#[test]
fn nbdkit_without_structured_replies() {
    needs!("nbdkit", "zstd");
    let source = Source::new(volume::motley);
    let peer = Peer::nbdkit_file(&["--no-sr"], &source.volume, &[]);
    source.assert_backed_up(&peer.uri_text(""));
}

/// A server that pads its answer to EXPORT_NAME with 124 zeroes.
#[test]
fn nbdkit_with_handshake_zeroes() {
    needs!("nbdkit", "zstd");
    let source = Source::new(volume::motley);
    let peer = Peer::nbdkit_file(&["--no-sr", "--mask-handshake=1"], &source.volume, &[]);
    source.assert_backed_up(&peer.uri_text(""));
}

/// A server that answers nothing which does not lie on 4096-byte blocks, and nothing over 64 KiB.
#[test]
fn nbdkit_with_large_blocks() {
    needs!("nbdkit", "zstd");
    let source = Source::new(|path| volume::sparse(path, 9 * MIB, &[1000..5000, 3 * MIB..4 * MIB + 513]));
    let policy = [
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
    ];
    let peer = Peer::nbdkit_file(&["--filter=blocksize-policy"], &source.volume, &policy);
    source.assert_backed_up(&peer.uri_text(""));
}

/// Holes that are reported on a grid coarser than the data, byte by byte.
#[test]
fn nbdkit_sparse_random() {
    needs!("nbdkit", "nbdcopy", "zstd");
    let peer = Peer::nbdkit(&["sparse-random", "size=64M", "percent=20", "seed=7"]);
    let source = Source::new(|path| {
        disk::run("nbdcopy", &[&peer.uri_text(""), path.to_str().unwrap()]);
    });
    assert!(source.assert_backed_up(&peer.uri_text(""))["bytes_zero"].as_u64() > Some(MIB));
}

/// Eight bytes in a row are their own offset: what is read from a wrong place is seen.
#[test]
fn nbdkit_pattern() {
    needs!("nbdkit", "zstd");
    let peer = Peer::nbdkit(&["pattern", "size=8M"]);
    let source = Source::new(|path| {
        let bytes: Vec<u8> = (0..MIB).flat_map(|word| (word * 8).to_be_bytes()).collect();
        std::fs::write(path, bytes).unwrap();
    });
    source.assert_backed_up(&peer.uri_text(""));
}

#[test]
fn nbdkit_memory_never_written() {
    needs!("nbdkit", "zstd");
    let peer = Peer::nbdkit(&["memory", "size=1G"]);
    let source = Source::new(|path| volume::sparse(path, 1 << 30, &[]));
    assert_eq!(source.assert_backed_up(&peer.uri_text(""))["bytes_nbd"], 0);
}

/// A server that knows no options at all.
#[test]
fn nbdkit_without_fixed_newstyle() {
    needs!("nbdkit", "zstd");
    let source = Source::new(volume::motley);
    let peer = Peer::nbdkit_file(&["--mask-handshake=0"], &source.volume, &[]);
    source.assert_backed_up(&peer.uri_text(""));
}

#[test]
fn what_cannot_be_used_is_refused_clearly() {
    needs!("nbdkit");
    let source = Source::new(volume::motley);
    let keys = source.directory.path().join("keys");
    std::fs::write(&keys, format!("alice:{}\n", "0f".repeat(32))).unwrap();
    let keys = format!("--tls-psk={}", keys.display());
    for options in [&["--oldstyle"][..], &["--tls=require", &keys]] {
        let peer = Peer::nbdkit_file(options, &source.volume, &[]);
        let image = source.directory.path().join("image");
        let (uri, output) = (peer.uri_text(""), image.to_str().unwrap());
        let error = program::fails("proxy-client", 1, &["backup", &uri, "--output", output]);
        assert_eq!(error["kind"], "host-incompatible", "{options:?}: {error}");
        image::assert_nothing_left(&image);
    }
}

/// Sizes at which blocks, leaves and length fields end.
const ODD_SIZES: [u64; 9] = [0, 1, 511, 513, 65_535, 65_536, 65_537, MIB - 1, MIB + 1];

#[test]
fn odd_sizes_from_nbdkit() {
    needs!("nbdkit", "zstd");
    for size in ODD_SIZES {
        let source = Source::new(|path| volume::dense(path, size));
        let peer = Peer::nbdkit_file(&[], &source.volume, &[]);
        source.assert_backed_up(&peer.uri_text(""));
    }
}

#[test]
fn odd_sizes_from_the_nbd_crate() {
    needs!("zstd");
    for size in ODD_SIZES {
        let source = Source::new(|path| volume::dense(path, size));
        source.assert_backed_up(&RustNbd::serve(&source.volume).uri());
    }
}

#[test]
fn holes_and_data_from_the_nbd_crate() {
    needs!("zstd");
    let source = Source::new(volume::motley);
    source.assert_backed_up(&RustNbd::serve(&source.volume).uri());
}

#[test]
fn a_gibibyte_and_a_byte() {
    needs!("nbdkit", "zstd");
    let size = (1 << 30) + 1;
    let source = Source::new(|path| {
        volume::sparse(
            path,
            size,
            &[0..4096, 512 * MIB - 1..512 * MIB + 1, size - 1..size],
        )
    });
    let peer = Peer::nbdkit_file(&[], &source.volume, &[]);
    assert!(source.assert_backed_up(&peer.uri_text(""))["bytes_nbd"].as_u64() < Some(MIB));
}

/// The `nbd` crate's client knows EXPORT_NAME, zero padding and simple replies only, and reads from our server.
#[test]
fn the_nbd_crate_reads_from_our_server() {
    let source = Source::new(volume::motley);
    let socket = tempfile::tempdir().unwrap();
    let socket = socket.path().join("s");
    let served = format!("vm={}", source.volume.display());
    let arguments = [
        "--socket",
        socket.to_str().unwrap(),
        "--freeze",
        "quiesce",
        &served,
    ];
    let _host = program::Host::serve(&arguments);
    let mut stream = UnixStream::connect(&socket).unwrap();
    let export = nbd::client::handshake(&mut stream, b"vm").unwrap();
    assert_eq!((export.size, export.readonly), (32 * MIB, true));
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1_000_003];
    loop {
        match client.read(&mut buffer).unwrap() {
            0 => break,
            length => hasher.update(&buffer[..length]),
        };
    }
    assert_eq!(hasher.finalize(), digest::of_file(&source.volume));
    // It has no other way to be told that there is no such export.
    let mut stream = UnixStream::connect(&socket).unwrap();
    assert!(nbd::client::handshake(&mut stream, b"another").is_err());
}
