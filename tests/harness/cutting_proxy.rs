//! A server that goes away: it passes on what a good one says, up to some byte, and hangs up there.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tempfile::TempDir;

/// Where the server goes away.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// On this connection, counted from 0; the others are whole.
    pub connection: usize,
    /// After this many bytes from the server.
    pub after: usize,
}

/// Stands between a client and a good server. Its threads end with the test's process.
pub struct CuttingProxy {
    directory: TempDir,
    connections: Arc<AtomicUsize>,
}

impl CuttingProxy {
    /// In front of the server on `socket`.
    pub fn new(server: &Path, cut: Cut) -> Self {
        Self::with_action(server, cut, || ())
    }

    /// The same; `action` is let in when the bytes have been passed on, and has ended before the proxy hangs up.
    pub fn with_action(server: &Path, cut: Cut, action: impl FnOnce() + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (server, counter): (PathBuf, _) = (server.to_owned(), Arc::clone(&connections));
        let mut action = Some(action);
        thread::spawn(move || {
            for client in listener.incoming() {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let client = client.unwrap();
                // A server that is not there now: the client is told so, and comes again.
                let Ok(server) = UnixStream::connect(&server) else {
                    continue;
                };
                match action.take_if(|_| number == cut.connection) {
                    Some(action) => session(client, server, cut.after, action),
                    None => session(client, server, usize::MAX, || ()),
                }
            }
        });
        Self {
            directory,
            connections,
        }
    }

    /// The URI of the export of that name.
    pub fn uri(&self, export: &str) -> String {
        let socket = self.directory.path().join("socket");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn session(client: UnixStream, server: UnixStream, room: usize, action: impl FnOnce() + Send + 'static) {
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        pass(&from_client, &to_server, usize::MAX);
        hang_up([from_client, to_server]);
    });
    thread::spawn(move || {
        pass(&server, &client, room);
        action();
        hang_up([server, client]);
    });
}

/// Passes bytes on until one side ends or `room` is used up.
fn pass(mut from: &UnixStream, mut to: &UnixStream, mut room: usize) {
    let mut buffer = vec![0; 64 << 10];
    while room > 0 {
        let wanted = buffer.len().min(room);
        match from.read(&mut buffer[..wanted]) {
            Ok(length) if length > 0 && to.write_all(&buffer[..length]).is_ok() => room -= length,
            _ => break,
        }
    }
}

fn hang_up(streams: [UnixStream; 2]) {
    for stream in streams {
        stream.shutdown(std::net::Shutdown::Both).ok();
    }
}
