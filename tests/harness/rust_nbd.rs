//! The `nbd` crate's server in this process: the oldest negotiation there is, EXPORT_NAME and simple replies.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use nbd::server::{Export, handshake, transmission};

/// The `nbd` crate's server on a file, on a TCP port that the kernel chose. Its threads end with the test's process.
pub struct RustNbd {
    port: u16,
}

impl RustNbd {
    /// Serves a file under any name.
    pub fn serve(file: &Path) -> Self {
        Self::serve_as(file, file.metadata().unwrap().len())
    }

    /// The same, and claims that the file has `size` bytes.
    pub fn serve_as(file: &Path, size: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let file = file.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, file) = (stream.unwrap(), File::open(&file).unwrap());
                // The crate hangs up on what it does not know, so how a session ended says nothing.
                std::thread::spawn(move || session(stream, file, size).ok());
            }
        });
        Self { port }
    }

    /// The URI of its export.
    pub fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/rustnbd", self.port)
    }
}

fn session(mut stream: TcpStream, file: File, size: u64) -> io::Result<()> {
    let export = Export {
        size,
        readonly: true,
        ..Export::<()>::default()
    };
    handshake(&mut stream, |_| Ok(export))?;
    transmission(stream, file)
}
