//! Foreign NBD servers as processes.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd_export::proto::ExportName;
use nbd_export::uri::{NbdAddress, NbdUri};
use tempfile::TempDir;

/// A server that listens on a Unix socket of its own; killed when dropped.
pub struct Peer {
    child: Child,
    socket: PathBuf,
    program: &'static str,
    before_socket: &'static [&'static str],
    directory: Option<TempDir>,
}

impl Peer {
    /// `qemu-nbd` with arguments: the file and its format, at least.
    pub fn qemu_nbd(arguments: &[&str]) -> Self {
        Self::start("qemu-nbd", &["-t", "-e", "8", "-k"], arguments)
    }

    /// `nbdkit` with arguments: a plugin, at least.
    pub fn nbdkit(arguments: &[&str]) -> Self {
        Self::start("nbdkit", &["-f", "-U"], arguments)
    }

    fn start(program: &'static str, before_socket: &'static [&'static str], arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let mut peer = Self::on(socket, program, before_socket, arguments);
        peer.directory = Some(directory);
        peer
    }

    fn on(
        socket: PathBuf,
        program: &'static str,
        before_socket: &'static [&'static str],
        arguments: &[&str],
    ) -> Self {
        let mut child = Command::new(program)
            .args(before_socket)
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !socket.exists() || UnixStream::connect(&socket).is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{program} {arguments:?}: {status}");
            }
            assert!(Instant::now() < deadline, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            child,
            socket,
            program,
            before_socket,
            directory: None,
        }
    }

    /// Kills it, and starts another with these arguments on its socket after a pause.
    pub fn replace(mut self, arguments: &[&str], pause: Duration) -> Self {
        self.kill();
        std::fs::remove_file(&self.socket).unwrap();
        std::thread::sleep(pause);
        let mut next = Self::on(self.socket.clone(), self.program, self.before_socket, arguments);
        next.directory = self.directory.take();
        next
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Asks it to end, so that it closes what it serves, and waits.
    pub fn terminate(mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.child.wait().unwrap();
    }

    /// `nbdkit`, read-only, on a file, with options before the plugin and parameters behind the file.
    pub fn nbdkit_file(options: &[&str], file: &Path, parameters: &[&str]) -> Self {
        let file = file.to_str().unwrap();
        Self::nbdkit(
            &[
                &["--exit-with-parent", "-r"],
                options,
                &["file", file],
                parameters,
            ]
            .concat(),
        )
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> NbdUri {
        NbdUri {
            address: NbdAddress::Unix(self.socket.clone()),
            export: ExportName::new(export).unwrap(),
            tls: None,
        }
    }

    /// The URI of an export, as a command takes it.
    pub fn uri_text(&self, export: &str) -> String {
        self.uri(export).to_string()
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
