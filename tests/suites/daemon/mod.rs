//! `proxy-client daemon`: jobs that outlive it, a repository without half images, and clients that it need not trust.

mod access;
mod evil;
mod host_starts;
mod host_starts_set;
mod jobs;
mod kills;
mod luns;
mod restarts;
mod status;

use tempfile::TempDir;
use tests::peer::Peer;

/// A foreign server of one volume.
struct Server {
    peer: Peer,
    directory: TempDir,
}

impl Server {
    /// With nbdkit's filters and their parameters.
    fn new(size: usize, filters: &[&str], parameters: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("volume");
        tests::volume::dense(&volume, u64::try_from(size).unwrap());
        Self {
            peer: Peer::nbdkit_file(filters, &volume, parameters),
            directory,
        }
    }

    /// One that takes its time for each read. On one thread: with several, nbdkit dies of clients that are killed.
    fn slow(milliseconds: u32) -> Self {
        let delay = format!("rdelay={milliseconds}ms");
        Self::new(32 << 20, &["--threads=1", "--filter=delay"], &[&delay])
    }

    fn volume(&self) -> std::path::PathBuf {
        self.directory.path().join("volume")
    }

    /// Its table in a configuration.
    fn table(&self, name: &str, more: &str) -> String {
        let socket = self.peer.socket().display();
        format!("[host.{name}]\nuri = \"nbd+unix:///?socket={socket}\"\n{more}\n")
    }
}
