//! The control socket: one JSON request line, one JSON reply line (docs/control.md).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::registry::Host;
use super::report::{FrozenReport, Listing};
use crate::error::{Error, ErrorKind};
use crate::server::UnixSocket;

/// Longest request line in bytes: names are at most a few hundred.
const REQUEST_MAX: u64 = 16 << 10;

/// Longest reply line in bytes that a client takes: tens of thousands of frozen images.
const REPLY_MAX: u64 = 64 << 20;

/// Time for a client to send its line; it has it ready when it connects.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Time for a client to take its reply.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// Clients at a time: operators and timers, not crowds.
const CLIENTS_MAX: usize = 16;

/// What an operator asks of an agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Freeze a volume, an origin or a set.
    Freeze {
        /// Its name.
        name: String,
        /// The frozen image is exported as `NAME@ID`; drawn if not given.
        id: Option<String>,
        /// It is thawed after so many seconds by itself, unless the hold is renewed; never, if not given.
        #[serde(default)]
        hold_seconds: Option<u64>,
    },
    /// Keep a frozen image, or those of a frozen set, so long from now on.
    Hold {
        /// Name of its export, or of the frozen set.
        export: String,
        /// A day at most.
        seconds: u64,
    },
    /// End a frozen image, or those of a frozen set.
    Thaw {
        /// Name of its export, or of the frozen set, or a UUID.
        export: String,
        /// Whether it ends also where it would be kept for incrementals, or is kept already.
        #[serde(default)]
        drop: bool,
    },
    /// Tell all that is served.
    List,
}

/// What an agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The frozen image that was made.
    Frozen(FrozenReport),
    /// The frozen images that were made of a set.
    FrozenSet(Vec<FrozenReport>),
    /// The frozen image that was ended.
    Thawed {
        /// Name of its export.
        export: String,
    },
    /// The frozen image that is kept on.
    Held {
        /// Name of its export.
        export: String,
    },
    /// All that is served.
    Listing(Listing),
    /// It was not done.
    Error {
        /// What went wrong, for programs.
        kind: ErrorKind,
        /// What went wrong, for people.
        message: String,
    },
}

/// Answers requests until it is dropped; a client that misbehaves costs itself its connection.
pub async fn serve(socket: UnixSocket, host: Arc<Host>) {
    let mut clients = JoinSet::new();
    loop {
        if clients.len() >= CLIENTS_MAX {
            // The loop goes on when one of them is done, and each has a deadline for its request.
            clients.join_next().await;
        }
        tokio::select! {
            Some(_) = clients.join_next() => {}
            accepted = socket.accept() => match accepted {
                Ok(stream) => {
                    clients.spawn(client(stream, Arc::clone(&host)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(crate::server::limits::ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn client(stream: tokio::net::UnixStream, host: Arc<Host>) {
    if let Err(error) = exchange(stream, host).await {
        tracing::info!(%error, "control connection failed");
    }
}

async fn exchange(mut stream: tokio::net::UnixStream, host: Arc<Host>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(reader.take(REQUEST_MAX));
    timeout(REQUEST_DEADLINE, reader.read_until(b'\n', &mut line)).await??;
    // A freeze waits for writers and for the disk.
    let reply = match serde_json::from_slice(&line) {
        Ok(request) => tokio::task::spawn_blocking(move || answer(&host, request)).await?,
        Err(error) => refused(&Error::caused(ErrorKind::Control, "not a request", error)),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    // A listing may be longer than what a socket holds, and the client has a place that others wait for.
    timeout(REPLY_DEADLINE, writer.write_all(&line)).await?
}

fn answer(host: &Host, request: Request) -> Reply {
    let done = match request {
        Request::Hold { export, seconds } => host
            .hold(&export, Duration::from_secs(seconds))
            .map(|()| Reply::Held { export }),
        Request::Freeze {
            name,
            id,
            hold_seconds,
        } => {
            let hold = hold_seconds.map(Duration::from_secs);
            host.freeze_for(&name, id.as_deref(), hold).map(|mut made| {
                if made.iter().any(|made| made.set.is_some()) {
                    return Reply::FrozenSet(made);
                }
                made.pop().map_or_else(|| Reply::FrozenSet(made), Reply::Frozen)
            })
        }
        Request::Thaw { export, drop } => {
            let thawed = match drop {
                true => host.thaw_for_good(&export),
                false => host.thaw(&export),
            };
            thawed.map(|()| Reply::Thawed { export })
        }
        Request::List => Ok(Reply::Listing(host.list())),
    };
    done.unwrap_or_else(|error| {
        tracing::warn!(%error, "control request failed");
        refused(&error)
    })
}

fn refused(error: &Error) -> Reply {
    Reply::Error {
        kind: error.kind(),
        message: error.to_string(),
    }
}

/// Asks the agent at `path`; an error that it answers is returned as one.
///
/// # Errors
/// [`ErrorKind::Control`], or what the agent says.
pub fn ask(path: &Path, request: &Request) -> Result<Reply, Error> {
    let talk = || -> io::Result<Reply> {
        let mut stream = UnixStream::connect(path)?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = Vec::new();
        BufReader::new(stream.take(REPLY_MAX)).read_until(b'\n', &mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    };
    let reply = talk().map_err(|error| {
        let path = path.display();
        let message =
            format!("no agent answers at {path}: is `nbd-export serve` running with this --control?");
        Error::caused(ErrorKind::Control, message, error)
    })?;
    match reply {
        Reply::Error { kind, message } => Err(Error::new(kind, message)),
        reply => Ok(reply),
    }
}
