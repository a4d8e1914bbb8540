//! The map of an export in one context, printed as it comes: a million extents need no memory.

use std::io;
use std::thread;

use nbd_export::proto::ContextName;
use nbd_export::uri::NbdUri;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use volmap::range::ByteRange;

use super::meaning::Meaning;
use super::totals::Totals;
use crate::error::{Error, ErrorKind, Result};
use crate::escaped::{escaped, json_line};
use crate::nbd::{Pool, PoolOptions};

/// What of a map is printed, and how.
#[derive(Clone, Debug)]
pub struct MapOptions {
    /// The context.
    pub context: ContextName,
    /// The sum of each status instead of the extents.
    pub totals: bool,
    /// JSON instead of columns.
    pub json: bool,
    /// How the server is talked to.
    pub nbd: PoolOptions,
}

/// A line of a map. Field names are part of the command line's contract, and those of nbdinfo.
#[derive(Serialize)]
struct Line<'a> {
    offset: u64,
    length: u64,
    #[serde(rename = "type")]
    status: u64,
    description: &'a str,
}

/// Prints the map of an export.
///
/// # Errors
/// The export has no such context, or the server or `out` fails.
pub async fn print_map(
    uri: &NbdUri,
    options: &MapOptions,
    out: impl io::Write + Send + 'static,
) -> Result<()> {
    let failed = |error| Error::from(error).of_volume(escaped(&uri.to_string()));
    let context = options.context.as_str();
    let nbd = PoolOptions {
        connections: 1,
        ..options.nbd
    };
    let pool = Pool::open(uri.clone(), std::slice::from_ref(&options.context), nbd)
        .await
        .map_err(failed)?;
    if pool.session().context_id(context).is_none() {
        let message = format!("the export has no context {}", escaped(context));
        return Err(Error::new(ErrorKind::HostIncompatible, message).of_volume(escaped(&uri.to_string())));
    }
    let meaning = Meaning::of(context);
    let mut pages = Pages::to(out)?;
    let mut printer = Printer {
        page: String::new(),
        meaning,
        json: options.json,
        open: None,
        lines: 0,
    };
    let mut totals = options.totals.then(Totals::default);
    let size = pool.session().export.size;
    let mut at = 0;
    while let Some(rest) = ByteRange::from_bounds(at, size) {
        for descriptor in pool.status(rest, context).await.map_err(failed)? {
            // Nothing is said behind the end of the export: the connection saw to that.
            match &mut totals {
                Some(totals) => totals.add(meaning.class(descriptor.status), descriptor.length)?,
                None => printer.extent(at, descriptor.length, descriptor.status),
            }
            at += descriptor.length;
            if printer.page.len() >= PAGE {
                pages.print(std::mem::take(&mut printer.page)).await?;
            }
        }
    }
    let last = match totals {
        Some(totals) => totals.lines(meaning, size, options.json),
        None => printer.last_page(),
    };
    pages.print(last).await?;
    pages.end().await?;
    pool.disconnect().await;
    Ok(())
}

/// Bytes that are printed at once.
const PAGE: usize = 64 << 10;

/// What is printed on a thread of its own: standard output may be a pipe that nobody reads, and the operator's wish to stop is to be
/// heard all the same. The thread is left behind then.
struct Pages {
    waiting: mpsc::Sender<String>,
    printed: oneshot::Receiver<io::Result<()>>,
}

impl Pages {
    fn to(mut out: impl io::Write + Send + 'static) -> Result<Self> {
        let (waiting, mut pages) = mpsc::channel::<String>(1);
        let (done, printed) = oneshot::channel();
        let print = move || {
            let mut result = Ok(());
            while result.is_ok()
                && let Some(page) = pages.blocking_recv()
            {
                result = out.write_all(page.as_bytes());
            }
            // Nobody waits for it where the job has ended otherwise.
            let _ = done.send(result.and_then(|()| out.flush()));
        };
        let thread = thread::Builder::new().name("standard output".to_owned());
        thread.spawn(print).map_err(broken)?;
        Ok(Self { waiting, printed })
    }

    async fn print(&mut self, page: String) -> Result<()> {
        match self.waiting.send(page).await {
            Ok(()) => Ok(()),
            // The thread has ended, and says why.
            Err(_) => why(&mut self.printed).await,
        }
    }

    async fn end(mut self) -> Result<()> {
        drop(self.waiting);
        why(&mut self.printed).await
    }
}

/// How the thread ended.
async fn why(printed: &mut oneshot::Receiver<io::Result<()>>) -> Result<()> {
    let ended = printed.await.unwrap_or_else(|gone| Err(io::Error::other(gone)));
    ended.map_err(broken)
}

fn broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "standard output cannot be written").caused_by(error)
}

/// Joins what goes on, and writes the rest.
struct Printer {
    page: String,
    meaning: Meaning,
    json: bool,
    /// Offset, length and status of an extent that may go on.
    open: Option<(u64, u64, u64)>,
    lines: u64,
}

impl Printer {
    fn extent(&mut self, offset: u64, length: u64, status: u64) {
        if let Some((_, open_length, open_status)) = &mut self.open
            && self.meaning.goes_on(*open_status, *open_length, status)
        {
            *open_length += length;
            return;
        }
        if let Some(whole) = self.open.replace((offset, length, status)) {
            self.write(whole);
        }
    }

    fn write(&mut self, (offset, length, status): (u64, u64, u64)) {
        let description = &*self.meaning.describe(status);
        let first = self.lines == 0;
        self.lines += 1;
        if self.json {
            let line = Line {
                offset,
                length,
                status,
                description,
            };
            self.page.push_str(if first { "[" } else { ",\n" });
            self.page.push_str(&json_line(&line));
        } else {
            let line = format!("{offset:>15} {length:>15} {status:>4}  {description}");
            self.page.push_str(line.trim_end());
            self.page.push('\n');
        }
    }

    fn last_page(mut self) -> String {
        if let Some(whole) = self.open.take() {
            self.write(whole);
        }
        if self.json {
            self.page.push_str(if self.lines == 0 { "[]\n" } else { "]\n" });
        }
        self.page
    }
}
