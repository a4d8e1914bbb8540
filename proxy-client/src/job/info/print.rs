//! The map of an export in one context, printed as it comes: a million extents need no memory.

use std::io::{self, Write};

use nbd_export::proto::ContextName;
use nbd_export::uri::NbdUri;
use serde::Serialize;
use volmap::range::ByteRange;

use super::escaped::{escaped, json_line};
use super::meaning::Meaning;
use super::totals::Totals;
use crate::error::{Error, ErrorKind, Result};
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
pub async fn print_map(uri: &NbdUri, options: &MapOptions, out: &mut (dyn Write + Send)) -> Result<()> {
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
    let mut printer = Printer {
        out,
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
                None => printer
                    .extent(at, descriptor.length, descriptor.status)
                    .map_err(broken)?,
            }
            at += descriptor.length;
        }
    }
    match totals {
        Some(totals) => totals.print(meaning, size, options.json, printer.out),
        None => printer.finish(),
    }
    .map_err(broken)?;
    pool.disconnect().await;
    Ok(())
}

fn broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "standard output cannot be written").caused_by(error)
}

/// Joins what goes on, and prints the rest.
struct Printer<'a> {
    out: &'a mut (dyn Write + Send),
    meaning: Meaning,
    json: bool,
    /// Offset, length and status of an extent that may go on.
    open: Option<(u64, u64, u64)>,
    lines: u64,
}

impl Printer<'_> {
    fn extent(&mut self, offset: u64, length: u64, status: u64) -> io::Result<()> {
        if let Some((_, open_length, open_status)) = &mut self.open
            && self.meaning.goes_on(*open_status, *open_length, status)
        {
            *open_length += length;
            return Ok(());
        }
        match self.open.replace((offset, length, status)) {
            Some(whole) => self.print(whole),
            None => Ok(()),
        }
    }

    fn print(&mut self, (offset, length, status): (u64, u64, u64)) -> io::Result<()> {
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
            let before = if first { "[" } else { ",\n" };
            write!(self.out, "{before}{}", json_line(&line))
        } else {
            let line = format!("{offset:>15} {length:>15} {status:>4}  {description}");
            writeln!(self.out, "{}", line.trim_end())
        }
    }

    fn finish(mut self) -> io::Result<()> {
        if let Some(whole) = self.open.take() {
            self.print(whole)?;
        }
        if self.json {
            writeln!(self.out, "{}]", if self.lines == 0 { "[" } else { "" })?;
        }
        self.out.flush()
    }
}
