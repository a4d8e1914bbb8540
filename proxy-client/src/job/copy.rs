//! `copy`: bytes from a file, a device, a stream or an NBD export to another.

use std::fmt;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration};
use nbd_export::proto::ContextName;
use nbd_export::uri::NbdUri;
use serde::Serialize;

use super::restore::incomplete;
use super::room_on;
use super::stop::unless_stopped;
use crate::config::Place;
use crate::copy::{
    ALLOCATION, FileSource, Flow, MappedReader, NbdSource, NbdWriter, NullWriter, Reader, STREAM_READ,
    StreamReader, StreamWriter, TargetWriter, Writer, run,
};
use crate::error::{Error, ErrorKind, Result};
use crate::file_id::FileId;
use crate::nbd::{Pool, PoolOptions};
use crate::restore::Target;

/// What to copy, and how.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// What is read.
    pub source: Place,
    /// What is written.
    pub target: Place,
    /// Give up what a file or device holds. Never helps against mounted, in use, too small, or a LUN that is being read.
    pub force: bool,
    /// Bytes that a stream must have.
    pub size: Option<u64>,
    /// Whether a device or export that is written to is known to hold nothing but zeroes.
    pub target_is_zero: bool,
    /// Zeroes of this length and alignment in data are written as zeroes; 0: data are not looked at.
    pub sparse: usize,
    /// How servers are talked to.
    pub nbd: PoolOptions,
    /// Requests in flight on each connection.
    pub requests: usize,
    /// Longest request.
    pub request_size: u64,
}

/// The result of a copy. Field names are part of the command line's contract.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CopyReport {
    /// Bytes of the source.
    pub size: u64,
    /// Bytes that were written as data.
    pub bytes_data: u64,
    /// Bytes that the source knows to be zero, or that were found to be.
    pub bytes_zero: u64,
    /// Bytes that were written a second time, because a lost connection may have taken them with it.
    pub bytes_again: u64,
    /// Bytes of a device or export behind the copy, which are as they were.
    pub left_alone: u64,
    /// Connections to the source; null if it is no NBD export.
    pub source_connections: Option<usize>,
    /// Connections to the target; null if it is no NBD export.
    pub target_connections: Option<usize>,
    /// How often a connection was lost and taken up again.
    pub reconnections: u64,
    /// Seconds from start to finish.
    pub seconds: f64,
}

/// A line for people.
impl fmt::Display for CopyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "copied {}: {} of data, {} of zeroes, in {}",
            HumanBytes(self.size),
            HumanBytes(self.bytes_data),
            HumanBytes(self.bytes_zero),
            HumanDuration(Duration::from_secs_f64(self.seconds))
        )?;
        if self.reconnections > 0 {
            let again = HumanBytes(self.bytes_again);
            write!(
                f,
                "; {} lost connections, {again} written again",
                self.reconnections
            )?;
        }
        Ok(())
    }
}

/// A source that is open.
struct Source {
    reader: Box<dyn Reader>,
    pool: Option<Arc<Pool>>,
    id: Option<FileId>,
}

/// A target that is open.
struct Opened {
    writer: Arc<dyn Writer>,
    pool: Option<Arc<Pool>>,
    left_alone: u64,
    /// Whether a copy that fails leaves it behind.
    existing: bool,
}

/// Copies. A new file appears under its name, durable, only when it is whole; whatever else is written to is incomplete after
/// an error, which says so, and when `stop` told why the copy must end. `progress` is told the bytes done, and the size as far as it is known.
///
/// # Errors
/// Of either side; before anything is changed where the target cannot be used.
pub async fn copy(
    options: &CopyOptions,
    stop: impl Future<Output = Error>,
    progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
) -> Result<CopyReport> {
    if options.size.is_some() && options.source != Place::Stdio {
        let message = "--size says how long stdin must be, and this source is not stdin";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    if matches!((&options.source, &options.target), (Place::Nbd(a), Place::Nbd(b)) if a == b) {
        return Err(Error::new(
            ErrorKind::OutputIsSource,
            "source and target are one export",
        ));
    }
    let mut stop = pin!(stop);
    let source = unless_stopped(stop.as_mut(), open_source(options)).await?;
    let pool = source.pool.clone();
    let report = copy_from(source, options, stop, progress).await;
    leave(pool).await;
    report
}

/// Copies from a source that is open.
async fn copy_from(
    mut source: Source,
    options: &CopyOptions,
    mut stop: Pin<&mut impl Future<Output = Error>>,
    progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
) -> Result<CopyReport> {
    let begun = Instant::now();
    let size = source.reader.size();
    let target = unless_stopped(stop.as_mut(), open_target(options, size, source.id)).await?;
    let widths = [&source.pool, &target.pool].map(|pool| pool.as_ref().map(|pool| pool.width()));
    let connections = widths.iter().flatten().max().copied().unwrap_or(1);
    let flow = Flow {
        requests: options.requests.saturating_mul(connections),
        step: step(options),
        sparse: sparse(options, target.pool.as_deref()),
    };
    let mut note = |done| progress(done, size);
    let copied = run(&mut *source.reader, target.writer, flow, &mut note);
    let copied = unless_stopped(stop, copied).await;
    drop(source.reader);
    let pools = [&source.pool, &target.pool].into_iter().flatten();
    let reconnections = pools.map(|pool| pool.reconnections()).sum();
    leave(target.pool).await;
    let copied = copied.map_err(|error| {
        if target.existing {
            incomplete("the copy failed", error, &options.target)
        } else {
            error
        }
    })?;
    // A stream says only at its end how long it is.
    let beyond = copied.size.saturating_sub(size.unwrap_or(0));
    Ok(CopyReport {
        size: copied.size,
        bytes_data: copied.data,
        bytes_zero: copied.zeroes,
        bytes_again: copied.again,
        left_alone: target.left_alone.saturating_sub(beyond),
        source_connections: widths[0],
        target_connections: widths[1],
        reconnections,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

async fn open_source(options: &CopyOptions) -> Result<Source> {
    let step = step(options);
    Ok(match &options.source {
        Place::Nbd(uri) => {
            let allocation = ContextName::new(ALLOCATION).into_iter().collect::<Vec<_>>();
            let pool = Arc::new(open(uri, &allocation, options.nbd).await?);
            Source {
                reader: Box::new(MappedReader::new(NbdSource::new(Arc::clone(&pool)), step)),
                pool: Some(pool),
                id: None,
            }
        }
        Place::Path(path) => {
            let file = FileSource::open(path)?;
            Source {
                id: Some(file.id()),
                reader: Box::new(MappedReader::new(file, step)),
                pool: None,
            }
        }
        Place::Stdio => Source {
            reader: Box::new(StreamReader::stdin(options.size, step)?),
            pool: None,
            id: file_behind("/dev/stdin"),
        },
        Place::Null => {
            return Err(Error::new(ErrorKind::Usage, "nothing can be read from null:"));
        }
    })
}

async fn open_target(options: &CopyOptions, size: Option<u64>, source: Option<FileId>) -> Result<Opened> {
    Ok(match &options.target {
        Place::Nbd(uri) => {
            let pool = Arc::new(open(uri, &[], options.nbd).await?);
            let left_alone = room_on(&pool, size.unwrap_or(0))?;
            Opened {
                writer: Arc::new(NbdWriter::new(Arc::clone(&pool), options.target_is_zero)?),
                pool: Some(pool),
                left_alone,
                existing: true,
            }
        }
        Place::Path(path) => {
            let mut target = Target::open(path, size, options.force, source)?;
            if options.target_is_zero {
                target.trust_to_be_zero();
            }
            Opened {
                left_alone: target.left_alone(),
                existing: target.is_existing(),
                writer: Arc::new(TargetWriter::new(target)),
                pool: None,
            }
        }
        Place::Stdio => {
            if source.is_some() && source == file_behind("/dev/stdout") {
                return Err(Error::new(
                    ErrorKind::OutputIsSource,
                    "source and target are one file",
                ));
            }
            Opened {
                writer: Arc::new(StreamWriter::stdout()?),
                pool: None,
                left_alone: 0,
                existing: true,
            }
        }
        Place::Null => Opened {
            writer: Arc::new(NullWriter),
            pool: None,
            left_alone: 0,
            existing: false,
        },
    })
}

/// Longest piece of data.
fn step(options: &CopyOptions) -> u64 {
    match options.source {
        Place::Stdio => options.request_size.min(STREAM_READ as u64),
        _ => options.request_size,
    }
}

/// Zeroes that are shorter than a block of the target would be read, changed and written back.
fn sparse(options: &CopyOptions, target: Option<&Pool>) -> usize {
    let block = target.map_or(1, |pool| pool.session().export.block.minimum.max(1));
    let block = usize::try_from(block).unwrap_or(usize::MAX);
    options
        .sparse
        .checked_next_multiple_of(block)
        .unwrap_or(options.sparse)
}

async fn leave(pool: Option<Arc<Pool>>) {
    if let Some(pool) = pool {
        pool.leave().await;
    }
}

async fn open(uri: &NbdUri, contexts: &[ContextName], options: PoolOptions) -> Result<Pool> {
    Pool::open(uri.clone(), contexts, options)
        .await
        .map_err(|error| Error::from(error).of_volume(uri.to_string()))
}

/// The file that a stream was redirected from or to, if it is one.
fn file_behind(stream: &str) -> Option<FileId> {
    let metadata = std::fs::metadata(Path::new(stream)).ok()?;
    metadata.is_file().then(|| FileId::of(&metadata))
}
