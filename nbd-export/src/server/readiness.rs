//! Telling whoever waits for it that the agent can serve, and that it ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Once;

/// Those who wait: the descriptor of `--ready-fd`, and a service manager (sd_notify(3)).
pub struct Readiness {
    ready: Option<File>,
    notify: Option<OsString>,
    stopping: Once,
}

impl Readiness {
    /// For them.
    pub fn new(ready: Option<File>, notify: Option<OsString>) -> Self {
        Self {
            ready,
            notify,
            stopping: Once::new(),
        }
    }

    /// The agent can serve: every export was opened and checked. Nobody being there to hear it is no reason not to.
    pub fn tell(&mut self) {
        if let Some(mut ready) = self.ready.take()
            && let Err(error) = ready.write_all(b"\n")
        {
            tracing::warn!(%error, "cannot write to --ready-fd");
        }
        self.notify("READY=1");
    }

    /// The agent ends. Told once.
    pub fn stopping(&self) {
        self.stopping.call_once(|| self.notify("STOPPING=1"));
    }

    fn notify(&self, state: &str) {
        let Some(socket) = &self.notify else { return };
        let sent = || -> io::Result<usize> {
            let address = match socket.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
            };
            UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)
        };
        if let Err(error) = sent() {
            tracing::warn!(%error, state, "cannot tell the service manager");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_service_manager_is_told_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("nbd-export-test-{}", std::process::id());
        for (socket, bound) in [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (
                format!("@{name}").into(),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            ),
        ] {
            let mut readiness = Readiness::new(None, Some(socket));
            readiness.tell();
            readiness.stopping();
            readiness.stopping();
            bound.set_nonblocking(true).unwrap();
            let mut heard = Vec::new();
            let mut buffer = [0; 64];
            while let Ok(count) = bound.recv(&mut buffer) {
                heard.push(String::from_utf8(buffer[..count].to_vec()).unwrap());
            }
            assert_eq!(heard, ["READY=1", "STOPPING=1"]);
        }
    }

    #[test]
    fn nobody_to_hear_it_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _stream_socket = UnixListener::bind(&path).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let ready = File::from(std::os::fd::OwnedFd::from(writer));
        Readiness::new(Some(ready), Some(path.into())).tell();
    }
}
