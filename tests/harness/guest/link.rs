//! A connection from a guest, which may vanish without a word.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::machine::Machine;

/// How often a reader looks whether the guest is still there: a killed one closes nothing.
const LOOK: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct Link {
    stream: TcpStream,
    machine: Arc<Machine>,
}

impl Link {
    pub(super) fn new(stream: TcpStream, machine: Arc<Machine>) -> Self {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(LOOK)).unwrap();
        Self { stream, machine }
    }

    pub(super) fn stream(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }
}

impl Read for Link {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buf) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.machine.has_ended() {
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                }
                other => return other,
            }
        }
    }
}
