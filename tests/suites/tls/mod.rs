//! TLS: foreign clients and servers, wrong certificates on both sides, and attackers in between.

mod access;
mod backup;
mod copies;
mod document;
mod downgrade;
mod foreign_clients;
mod foreign_servers;
mod goodbye;

use std::process::{Command, Output};

use tempfile::TempDir;
use tests::pki::Pki;
use tests::program::Host;

/// `nbd-export serve` of one volume, `vm`, inside TLS.
struct Served {
    host: Host,
    directory: TempDir,
    bytes: Vec<u8>,
}

impl Served {
    /// On a TCP port of 127.0.0.1.
    fn tcp(pki: &Pki, more: &[&str]) -> Self {
        Self::start(pki.server.text(), &[&["--listen", "127.0.0.1:0"], more].concat())
    }

    /// On a Unix socket.
    fn unix(pki: &Pki, more: &[&str]) -> Self {
        Self::start(pki.server.text(), more)
    }

    fn start(tls_directory: &str, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        // Every block differs from its neighbours.
        let words = (0..1_u64 << 19).flat_map(u64::to_le_bytes);
        let bytes: Vec<u8> = words.collect();
        std::fs::write(path("vm.img"), &bytes).unwrap();
        let (volume, socket, control) = (format!("vm={}", path("vm.img")), path("s"), path("control"));
        let mut arguments = vec![&volume, "--freeze=quiesce", "--control", &control];
        if !more.contains(&"--listen") {
            arguments.extend(["--socket", &socket]);
        }
        let host = Host::serve(&[&arguments[..], &["--tls-dir", tls_directory], more].concat());
        Self {
            host,
            directory,
            bytes,
        }
    }

    /// The URI that it printed.
    fn uri(&self) -> &str {
        self.host.uri("vm")
    }

    /// The same for clients with certificates of their own.
    fn uri_with(&self, tls_directory: &str) -> String {
        let separator = if self.uri().contains('?') { '&' } else { '?' };
        format!("{}{separator}tls-certificates={tls_directory}", self.uri())
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }
}

/// Runs a foreign program to its end; what it says is in English.
fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", program]).args(arguments).env("LC_ALL", "C");
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
