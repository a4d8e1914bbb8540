//! The server goes away: at every byte of a handshake, at every byte of a reply.

use nbd_export::proto::HeaderStyle;
use proxy_client::config::ImagePath;
use proxy_client::error::ErrorKind;
use proxy_client::job::backup::{BackupOptions, backup};
use proxy_client::progress::Progress;
use proxy_client::transport::direct::DirectOpener;
use tests::evil_server::{EvilServer, Script};
use tests::{image, volume};

use super::STYLES;

/// A volume so small that every byte of the session can be the last.
const SIZE: usize = 600;

/// One backup whose server hangs up after so many bytes of each connection: whether it succeeded.
fn succeeds(style: HeaderStyle, cut: usize) -> bool {
    let server = EvilServer::start(volume::noise(3, SIZE), Script::honest(style).cut_after(cut));
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("image");
    let options = BackupOptions::new(server.nbd_uri(), ImagePath::File(output.clone()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(backup(&options, &DirectOpener, &Progress::hidden())) {
        Ok(_) => true,
        Err(error) => {
            let kinds = [ErrorKind::HostLost, ErrorKind::HostRefused];
            assert!(kinds.contains(&error.kind()), "{style:?}, cut at {cut}: {error}");
            runtime.shutdown_timeout(std::time::Duration::from_secs(10));
            image::assert_nothing_left(&output);
            false
        }
    }
}

#[test]
fn at_every_byte() {
    for style in STYLES {
        let mut cut = 0;
        while !succeeds(style, cut) {
            // Within the data one byte is like another.
            cut += if (400..900).contains(&cut) { 97 } else { 1 };
            assert!(cut < 4096, "{style:?}: it never succeeds");
        }
        // The volume, and what is needed to ask for it.
        assert!(cut >= SIZE + 18, "{style:?}: {cut} bytes cannot be enough");
    }
}
