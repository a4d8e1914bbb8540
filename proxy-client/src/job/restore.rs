//! `restore`: writes the volume of an image to a new file, an existing file, a block device or a writable NBD export.

use std::future::pending;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use super::stop::unless_stopped;
use super::thread::on_thread;
use crate::chain::{Chain, ChainSource, find_parents};
use crate::config::Place;
use crate::copy::{Flow, ImageReader, MappedReader, NbdWriter, TargetWriter, Writer, run};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{End, Header};
use crate::image_source::ImageSource;
use crate::nbd::{Pool, PoolOptions};
use crate::restore::Target;
use crate::unreadable::UnreadableRanges;

/// Pieces of an image that are written side by side.
const FLOW: Flow = Flow {
    requests: 16,
    step: 1 << 20,
    sparse: 0,
};

/// What to restore, and to where.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The image; `-` is standard input.
    pub image: PathBuf,
    /// Images that it continues, where they do not lie beside it.
    pub parents: Vec<PathBuf>,
    /// A name that is free, a regular file, a block device, or an NBD export.
    pub output: Place,
    /// Give up what the target holds. Never helps against mounted, in use, too small, or a LUN that is being read.
    pub force: bool,
    /// How a server is talked to.
    pub nbd: PoolOptions,
}

impl RestoreOptions {
    /// To a file or device, without force.
    pub fn to_path(image: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            image: image.into(),
            parents: Vec::new(),
            output: Place::Path(output.into()),
            force: false,
            nbd: PoolOptions::default(),
        }
    }
}

/// A restored volume.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Header of the image.
    pub header: Header,
    /// END of the image, verified.
    pub end: End,
    /// What could not be read when the image was made; zeroes stand there now. [`UnreadableRanges::error`] is what the
    /// command ends with.
    pub unreadable: UnreadableRanges,
    /// Bytes of a device or export behind the volume, which are as they were.
    pub left_alone: u64,
}

/// Restores a volume, and verifies the image while it does.
///
/// * A name that is free: the file appears under it, durable, only when the whole image proved good; zeroes are holes.
/// * A regular file: it is emptied (with `force`, if it is not empty) and written in place; it ends as long as the volume.
/// * A block device: overwritten in place, zeroes included; what lies behind the volume is left alone.
/// * An NBD export: the same, without a look at what it holds. A connection that is lost may have taken with it what was not flushed:
///   then the restore fails.
///
/// `progress` is told bytes of the volume done, and its size.
///
/// # Errors
/// Before anything is changed: `TargetNotEmpty`, `TargetBusy`, `TargetTooSmall`, `TargetUnfit`, `OutputIsSource`,
/// `OutputExists`, those of a server, and, where the image is a file, `ImageBad` if it was cut. Later: `ImageBad`, `Io`,
/// `HostLost`; an existing target is incomplete then, and the message says so.
pub async fn restore(
    options: &RestoreOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Restored> {
    restore_unless(options, pending(), progress).await
}

/// The same, until `stop` tells why the restore must end.
///
/// # Errors
/// Those of [`restore`], and what `stop` told.
pub async fn restore_unless(
    options: &RestoreOptions,
    stop: impl Future<Output = Error>,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Restored> {
    let mut stop = pin!(stop);
    let image = options.image.clone();
    // A pipe that nobody writes to makes whoever opens it wait.
    let opening = on_thread(move || {
        let source = ImageSource::open(&image)?;
        if source.is_seekable()? {
            // An image that was cut is found out before a target is given up for it.
            source.outline()?;
        }
        Ok(source)
    });
    let source = unless_stopped(stop.as_mut(), opening).await?;
    let image = source.id()?;
    let mut reader = unless_stopped(stop.as_mut(), Volume::open(source, options)).await?;
    let header = reader.header().clone();
    let size = header.size;
    let mut connected = None;
    let (writer, left_alone, existing): (Arc<dyn Writer>, _, _) = match &options.output {
        Place::Path(path) => {
            let target = Target::open(path, Some(size), options.force, Some(image))?;
            let (left_alone, existing) = (target.left_alone(), target.is_existing());
            (Arc::new(TargetWriter::new(target)), left_alone, existing)
        }
        Place::Nbd(uri) => {
            let opening = async { Ok(Pool::open(uri.clone(), &[], options.nbd).await?) };
            let pool = Arc::new(unless_stopped(stop.as_mut(), opening).await?);
            let left_alone = super::room_on(&pool, size)?;
            connected = Some(Arc::clone(&pool));
            (Arc::new(NbdWriter::new(pool, false)?), left_alone, true)
        }
        Place::Stdio | Place::Null => {
            let message = "a volume is restored to a file, a block device or an NBD export";
            return Err(Error::new(ErrorKind::Usage, message));
        }
    };
    let mut note = |done| progress(done, size);
    let copied = unless_stopped(stop, reader.copy_to(writer, &mut note)).await;
    if let Some(pool) = connected {
        pool.leave().await;
    }
    if let Err(error) = copied {
        return Err(if existing {
            incomplete("the restore failed", error, &options.output)
        } else {
            error
        });
    }
    let (end, unreadable) = reader.into_end()?;
    Ok(Restored {
        header,
        end,
        unreadable,
        left_alone,
    })
}

/// What is restored: an image that is read through, or a chain that is read where it has to be.
enum Volume {
    Image(Box<ImageReader>),
    Chain(Arc<Chain>),
}

impl Volume {
    async fn open(source: ImageSource, options: &RestoreOptions) -> Result<Self> {
        if !source.is_seekable()? || source.parent()?.is_none() {
            return Ok(Self::Image(Box::new(ImageReader::open(source).await?)));
        }
        let (image, parents) = (options.image.clone(), options.parents.clone());
        on_thread(move || {
            let chain = Chain::open(&find_parents(&image, &parents)?)?;
            chain.check()?;
            Ok(Self::Chain(Arc::new(chain)))
        })
        .await
    }

    fn header(&self) -> &Header {
        match self {
            Self::Image(reader) => reader.header(),
            Self::Chain(chain) => chain.header(),
        }
    }

    async fn copy_to(&mut self, writer: Arc<dyn Writer>, note: &mut (dyn FnMut(u64) + Send)) -> Result<()> {
        match self {
            Self::Image(reader) => run(reader.as_mut(), writer, FLOW, note).await?,
            Self::Chain(chain) => {
                let mut reader = MappedReader::new(ChainSource(Arc::clone(chain)), FLOW.step);
                run(&mut reader, writer, FLOW, note).await?
            }
        };
        Ok(())
    }

    fn into_end(self) -> Result<(End, UnreadableRanges)> {
        match self {
            Self::Image(reader) => Ok(reader.into_end().expect("a copy ends with its source")),
            Self::Chain(chain) => Ok((*chain.end(), chain.unreadable()?)),
        }
    }
}

/// The cause keeps its kind, and with it its exit code; the sentence is about the target.
pub(super) fn incomplete(what: &str, error: Error, output: &Place) -> Error {
    let message = format!("{what}: the target {output} is incomplete and must not be used");
    Error::new(error.kind(), message).caused_by(error)
}
