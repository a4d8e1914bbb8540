//! `resume`: finishes an image that a backup left unfinished.

use std::fs::File;
use std::future::pending;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_export::proto::ExportName;
use nbd_export::uri::NbdUri;
use uuid::Uuid;
use volmap::identity::Identity;

use super::backup::{Earlier, Ready, identity_of, keep_off_luns, open_luns, open_spool, warn_of_strangers};
use super::doctor::refuse_used;
use super::lineage::{ParentOptions, ParentPolicy, changed_since, opened};
use super::stop::{Stopped, unless_stopped};
use super::thread::on_thread;
use super::unfinished;
use crate::chain::{Chain, ParentChain, find_parents_of_unfinished};
use crate::config::{LunArgument, SpoolArgument};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    End, Found, HEADER_FRAME_MAX, Header, ImageError, JobRecord, LunProof, ParentImage, Resumption,
    UnfinishedImage, WholeImage, header_of,
};
use crate::interrupt::Interrupt;
use crate::nbd::{PoolOptions, is_made_on_request};
use crate::output::{FileOutput, PartialFile};
use crate::pipeline::{
    CheckpointEvery, FetchPolicy, FrozenSource, Luns, Tally, Throttle, Writing, prove_by_tag,
};
use crate::progress::Progress;
use crate::report::{BackupReport, verdict_on};
use crate::transport::direct::limits::DIRECT_READ_DEADLINE;
use crate::transport::direct::{Lun, LunOpener, LunReader};
use crate::transport::nbd::NbdSource;

/// Bytes per read of the unfinished image.
const READ: usize = 1 << 20;

/// What to finish. What is not given is as the backup was told.
#[derive(Clone, Debug)]
pub struct ResumeOptions {
    /// The image, by the name that it gets or by that of the `.partial` file.
    pub image: PathBuf,
    /// The frozen image that it has to be of; any, if not given.
    pub frozen: Option<Uuid>,
    /// Where the export is now.
    pub uri: Option<NbdUri>,
    /// Where certificates are: an image does not say it, unless the URI of the backup did; then this goes before it.
    pub tls_directory: Option<PathBuf>,
    /// Where LUNs of the backup are now.
    pub luns: Vec<LunArgument>,
    /// No other LUN is opened, whatever the image says, and none has to be one of the backup's.
    pub only_these_luns: bool,
    /// What uses the LUNs on this machine is the host; else LUNs in use are refused.
    pub host_is_this_machine: bool,
    /// Where the image is now that this one continues.
    pub parent: Option<PathBuf>,
    /// Smallest share of the data, in percent, that has to be read directly.
    pub require_direct: Option<f64>,
    /// Share of the direct data, in percent, that is compared with the host's.
    pub audit_percent: Option<f64>,
    /// Data that cannot be read directly ends the job.
    pub no_fallback: Option<bool>,
    /// How often there are checkpoints from here on.
    pub checkpoints: CheckpointEvery,
    /// How the host is talked to.
    pub nbd: PoolOptions,
    /// How long a direct read may take.
    pub direct_timeout: Duration,
    /// How fast, changed while it runs.
    pub throttle: Throttle,
    /// Where batches wait for a slow output.
    pub spool: Option<SpoolArgument>,
}

impl ResumeOptions {
    /// As the backup was told.
    pub fn new(image: impl Into<PathBuf>) -> Self {
        Self {
            image: image.into(),
            frozen: None,
            uri: None,
            tls_directory: None,
            luns: Vec::new(),
            only_these_luns: false,
            host_is_this_machine: false,
            parent: None,
            require_direct: None,
            audit_percent: None,
            no_fallback: None,
            checkpoints: CheckpointEvery::default(),
            nbd: PoolOptions::default(),
            direct_timeout: DIRECT_READ_DEADLINE,
            throttle: Throttle::default(),
            spool: None,
        }
    }
}

/// What resuming came to.
#[derive(Debug)]
pub enum Resumed {
    /// The image was finished; the report is about all of it.
    Finished(Box<BackupReport>),
    /// Nothing was missing but its name, which it has now.
    WasWhole(Box<WasWhole>),
}

/// An image of which only the name was missing.
#[derive(Debug)]
pub struct WasWhole {
    /// Its END.
    pub end: End,
    /// Smallest share of the data, in percent, that had to be read directly.
    pub require_direct: Option<f64>,
}

impl WasWhole {
    fn new(whole: &WholeImage, options: &ResumeOptions) -> Self {
        let told = whole.header.job.as_ref().and_then(|job| job.require_direct);
        Self {
            end: whole.end,
            require_direct: options.require_direct.or(told),
        }
    }

    /// What the command ends with: that of the backup.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], [`ErrorKind::PolicyMissed`].
    pub fn verdict(&self) -> Result<()> {
        verdict_on(&self.end, self.require_direct)
    }
}

/// Finishes an image that a backup left unfinished: reads it up to its last checkpoint, cuts off what follows, and goes on with the
/// same frozen image. The root is that of a backup that was never interrupted. Where this fails too, what becomes of the unfinished
/// image is as with a backup; until the host has shown that it has the same frozen image, the file is not changed.
///
/// # Errors
/// [`ErrorKind::FrozenImageGone`]: the host has another frozen image now, or none. [`ErrorKind::ImageBad`]: there is nothing to go
/// on from. [`ErrorKind::OutputExists`]: the image is finished, or being written. Those of [`super::backup::backup`].
pub async fn resume(options: &ResumeOptions, opener: &dyn LunOpener, progress: &Progress) -> Result<Resumed> {
    resume_unless(options, opener, pending(), progress).await
}

/// The same, until `stop` tells why it must end.
///
/// # Errors
/// Those of [`resume`], and what `stop` told.
pub async fn resume_unless(
    options: &ResumeOptions,
    opener: &dyn LunOpener,
    stop: impl Future<Output = Error> + Send,
    progress: &Progress,
) -> Result<Resumed> {
    let begun = Instant::now();
    let stopped = Stopped::default();
    let mut stop = pin!(stopped.remembering(stop));
    let path = final_name(&options.image);
    let partial = PartialFile::reopen(&path)?;
    let partial_path = partial.partial_path().to_owned();
    let given = options.parent.clone();
    let looking = on_thread(move || {
        let parent = parent_of(&partial, given)?;
        Ok((partial, parent))
    });
    let (partial, parent) = unless_stopped(stop.as_mut(), looking).await?;
    let examining = examined(partial, parent.clone(), None, progress);
    let (mut partial, mut found) = unless_stopped(stop.as_mut(), examining).await?;
    // Of what is whole no host is asked any more.
    is_of(&found, options.frozen).map_err(|error| error.at_path(&partial_path))?;
    if let Found::Whole(whole) = found {
        // Its writer may have ended because it could not be made durable: only what is written again is known to be.
        let examining = examined(partial, parent.clone(), Some(whole.at), progress);
        (partial, found) = unless_stopped(stop.as_mut(), examining).await?;
    }
    let resumption = match found {
        Found::Whole(whole) => {
            on_thread(move || partial.commit()).await?;
            return Ok(Resumed::WasWhole(Box::new(WasWhole::new(&whole, options))));
        }
        Found::Unfinished(resumption) => resumption,
    };
    tracing::info!(
        position = resumption.position(),
        found = %resumption.broken(),
        "the image is good up to its last checkpoint"
    );
    let prepared = prepare(options, opener, begun, &path, partial, (*resumption, parent));
    let ready = unless_stopped(stop.as_mut(), prepared)
        .await
        .map_err(|error| say_what_is_left(error, &path, &partial_path))?;
    let report = ready
        .finish(stop, progress)
        .await
        .map_err(|error| stopped.or(unfinished::after(error, &path)))?;
    Ok(Resumed::Finished(Box::new(report)))
}

/// Law P5: the bytes of another frozen image are of another instant, however whole they are.
fn is_of(found: &Found, wanted: Option<Uuid>) -> Result<()> {
    let header = match found {
        Found::Whole(whole) => &whole.header,
        Found::Unfinished(resumption) => resumption.header(),
    };
    match wanted {
        Some(wanted) if wanted != header.frozen => {
            let message = format!(
                "this unfinished image is of the frozen image {}, and {wanted} is to be backed up: remove it to begin again",
                header.frozen
            );
            Err(Error::new(ErrorKind::FrozenImageGone, message))
        }
        _ => Ok(()),
    }
}

/// `FILE` for `FILE` and for `FILE.partial`.
fn final_name(image: &Path) -> PathBuf {
    if image.extension().is_some_and(|extension| extension == "partial") && image.exists() {
        image.with_extension("")
    } else {
        image.to_owned()
    }
}

fn say_what_is_left(error: Error, path: &Path, partial: &Path) -> Error {
    match error.kind() {
        ErrorKind::FrozenImageGone | ErrorKind::ExportChanged => {
            let message = format!(
                "the frozen image that {} was made from is gone: a new backup is needed, and this file is of no more use",
                partial.display()
            );
            Error::new(error.kind(), message).caused_by(error)
        }
        ErrorKind::OutputExists | ErrorKind::Usage => error,
        ErrorKind::LineageBroken => {
            let message = format!(
                "the host cannot tell any more what changed since the image that {} continues: a new backup is needed, and this \
                 file is of no more use",
                partial.display()
            );
            Error::new(error.kind(), message).caused_by(error)
        }
        _ => unfinished::kept(error, path, partial),
    }
}

/// What an unfinished image continues, if it does: found where the backup had it or where it is now, and its roots computed.
fn parent_of(partial: &PartialFile, given: Option<PathBuf>) -> Result<Option<Arc<Chain>>> {
    let path = partial.partial_path();
    let failed = |error| Error::io("reading the unfinished image", path, error);
    let mut first = Vec::new();
    let mut file = partial.file();
    file.rewind().map_err(failed)?;
    file.take(HEADER_FRAME_MAX as u64)
        .read_to_end(&mut first)
        .map_err(failed)?;
    let Some(header) = header_of(&first).filter(|header| header.parent.is_some()) else {
        return Ok(None);
    };
    let told = || {
        let told = header.job.as_ref()?.parent.as_ref().map(PathBuf::from);
        told.filter(|path| path.is_file())
    };
    let named: Vec<PathBuf> = given.or_else(told).into_iter().collect();
    let paths = find_parents_of_unfinished(&path.with_extension(""), &header, &named)?;
    opened(&paths).map(Some)
}

/// Reads the unfinished image on a thread of its own, after what lies behind `anew` was written anew.
async fn examined(
    partial: PartialFile,
    parent: Option<Arc<Chain>>,
    anew: Option<u64>,
    progress: &Progress,
) -> Result<(PartialFile, Found)> {
    /// Tells the thread to end when nobody waits for it any more.
    struct RaiseOnDrop(Interrupt);
    impl Drop for RaiseOnDrop {
        fn drop(&mut self) {
            self.0.raise();
        }
    }
    let interrupt = Interrupt::default();
    let _raised = RaiseOnDrop(interrupt.clone());
    let progress = progress.clone();
    on_thread(move || {
        if let Some(from) = anew {
            partial.write_anew(from, &interrupt)?;
        }
        let found = examine(partial.file(), parent, &interrupt, &progress);
        progress.end();
        match found {
            Ok(found) => Ok((partial, found)),
            Err(error) => Err(error.at_path(partial.partial_path())),
        }
    })
    .await
}

fn examine(
    mut file: &File,
    parent: Option<Arc<Chain>>,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Found> {
    let failed = |error| Error::io("reading the unfinished image", Path::new(""), error);
    file.rewind().map_err(failed)?;
    let leaves = parent.map(|parent| Box::new(ParentChain(parent)) as Box<dyn ParentImage>);
    let mut image = UnfinishedImage::new().over(leaves);
    let mut buffer = vec![0; READ];
    let length = file.metadata().map_err(failed)?.len();
    let mut done = 0;
    loop {
        interrupt.check()?;
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        image.decoder().push(&buffer[..read]);
        let broken = loop {
            match image.decoder().next_event() {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                // What was written is not at fault, and is not cut for it.
                Err(error @ ImageError::ParentUnreadable { .. }) => return Err(error.into()),
                Err(_) => break true,
            }
        };
        done += read as u64;
        progress.update_bytes(done, length);
        if broken {
            break;
        }
    }
    image.finish().map_err(|error| {
        Error::new(
            ErrorKind::ImageBad,
            "there is nothing to go on from: a new backup is needed",
        )
        .caused_by(error)
    })
}

async fn prepare(
    options: &ResumeOptions,
    opener: &dyn LunOpener,
    begun: Instant,
    path: &Path,
    partial: PartialFile,
    (resumption, parent): (Resumption, Option<Arc<Chain>>),
) -> Result<Ready> {
    let header = resumption.header();
    if header.frozen.is_nil() {
        let message = "the server of this backup publishes no frozen image, so nothing tells whether it still has the same bytes";
        return Err(Error::new(ErrorKind::FrozenImageGone, message).at_path(path));
    }
    let uri = as_made(uri(options, header.job.as_ref())?, header)?;
    let arguments = lun_arguments(options, header)?;
    if !options.host_is_this_machine {
        refuse_used(&arguments)?;
    }
    let luns = with_those_left_out(open_luns(&arguments, options.direct_timeout, opener)?, header);
    keep_off_luns(partial.partial_path(), &arguments)?;
    let spool = open_spool(options.spool.as_ref(), &arguments)?;
    let identities: Vec<Identity> = luns.all().map(|lun| lun.identity.clone()).collect();
    let source = NbdSource::open_again(uri.clone(), identities, options.nbd).await?;
    if source.frozen() != Some(header.frozen) || source.size() != header.size {
        let message = match source.frozen() {
            Some(other) => format!("the backup is of {}, the host has {other}", header.frozen),
            None => format!(
                "the backup is of {}, the host publishes no frozen image",
                header.frozen
            ),
        };
        return Err(Error::new(ErrorKind::FrozenImageGone, message).of_volume(uri.export.as_str()));
    }
    warn_of_strangers(&luns, &source.published().await);
    let delta = match parent {
        Some(parent) => {
            let told = ParentOptions {
                image: path.to_owned(),
                policy: ParentPolicy::Refuse,
                bitmap: header.job.as_ref().and_then(|job| job.bitmap.clone()),
            };
            Some(Arc::new(changed_since(&uri, parent, &told, &source).await?))
        }
        None => None,
    };
    if luns.all().next().is_some() {
        prove_by_tag(&uri, &luns, options.nbd.deadlines).await?;
    }
    let luns = as_proven_as_before(luns, header).await;
    distrust_as_before(&luns, header);
    // A wrong path is found out here, while the file is as it was. What differs later casts doubt on what is in it.
    for disk in 0..luns.all().count() {
        let disk =
            u16::try_from(disk).map_err(|_| Error::new(ErrorKind::Usage, "there are too many LUNs"))?;
        if let Err(reason) = luns.prove(disk, &source, &[]).await? {
            tracing::debug!(lun = %luns.lun(disk).identity, reason, "not proven yet");
        }
    }

    let told = header.job.as_ref();
    let policy = FetchPolicy {
        audit_percent: options
            .audit_percent
            .unwrap_or_else(|| told.map_or(0.0, |job| job.audit_percent)),
        no_fallback: options
            .no_fallback
            .unwrap_or_else(|| told.is_some_and(|job| job.no_fallback)),
        throttle: options.throttle.clone(),
        ..FetchPolicy::default()
    };
    let require_direct = options
        .require_direct
        .or_else(|| told.and_then(|job| job.require_direct));
    let parent_frozen = header.parent.map(|parent| parent.frozen.to_string());
    let tally = Tally::resumed(&resumption.tally(), &resumption.checkpoint());
    // From here on the file is changed.
    let output = Box::new(FileOutput::resume(partial, resumption.at())?);
    let (encoder, first) = resumption.into_encoder();
    Ok(Ready {
        begun,
        source,
        luns,
        policy,
        require_direct,
        parent: parent_frozen,
        full_because: None,
        writing: Writing {
            encoder,
            first,
            output,
            tally,
            delta,
            checkpoints: Some(options.checkpoints),
            spool,
            is_all_read: Arc::default(),
        },
        earlier: Earlier::default(),
    })
}

fn uri(options: &ResumeOptions, told: Option<&JobRecord>) -> Result<NbdUri> {
    if let Some(uri) = &options.uri {
        return Ok(uri.clone());
    }
    let uri = told
        .and_then(|job| job.uri.parse::<NbdUri>().ok())
        .ok_or_else(|| {
            let message = "the image does not say where the export is: give --uri";
            Error::new(ErrorKind::Usage, message)
        })?;
    let Some(directory) = options.tls_directory.as_deref() else {
        return Ok(uri);
    };
    if uri.tls.is_none() {
        let message =
            format!("the backup was over {uri}, where nothing is encrypted: there is no use for --tls-dir");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(uri.with_tls_directory(directory))
}

/// The LUNs of the header in their order, for receipts name them by it; where they are now may be given anew.
/// In the place of an export that is made on request, that which was made for the backup: another one would be of another instant.
fn as_made(uri: NbdUri, header: &Header) -> Result<NbdUri> {
    if !is_made_on_request(&uri) {
        return Ok(uri);
    }
    let volume = |export: &str| export.split('@').next().map(str::to_owned);
    let made = ExportName::new(&header.volume).ok();
    let made = made.filter(|made| volume(made.as_str()) == volume(uri.export.as_str()));
    let export = made.ok_or_else(|| {
        let message = format!(
            "the image is of {}, and {} cannot be it",
            header.volume, uri.export
        );
        Error::new(ErrorKind::Usage, message)
    })?;
    Ok(NbdUri { export, ..uri })
}

/// Where the LUNs of the backup are now, in its order.
fn lun_arguments(options: &ResumeOptions, header: &Header) -> Result<Vec<LunArgument>> {
    let mut given = Vec::new();
    for argument in &options.luns {
        let identity = match options.only_these_luns {
            // A configuration may leave it to the disk what it is called.
            true => Some(identity_of(argument)?),
            false => argument.identity.clone(),
        };
        given.push(LunArgument {
            identity,
            ..argument.clone()
        });
    }
    let told = header.job.iter().flat_map(|job| &job.luns);
    let told: Vec<LunArgument> = told.filter_map(|text| LunArgument::parse(text).ok()).collect();
    let mut arguments = Vec::new();
    for lun in &header.luns {
        let is_it = |argument: &mut LunArgument| argument.identity.as_ref() == Some(&lun.identity);
        let mut anew: Vec<LunArgument> = given.extract_if(.., is_it).collect();
        let as_told = told
            .iter()
            .filter(|argument| argument.identity.as_ref() == Some(&lun.identity));
        if anew.is_empty() && !options.only_these_luns {
            anew.extend(as_told.cloned());
        } else if !anew.is_empty() && anew.iter().all(|argument| argument.allowed.is_empty()) {
            // Elsewhere than it was, it is still no more than was allowed.
            let allowed = as_told.flat_map(|argument| argument.allowed.iter().copied());
            anew[0].allowed = allowed.collect();
        }
        if anew.is_empty() && !options.only_these_luns {
            anew.push(LunArgument {
                identity: Some(lun.identity.clone()),
                path: PathBuf::from(&lun.path),
                allowed: Vec::new(),
            });
        }
        arguments.append(&mut anew);
    }
    match given.first() {
        Some(stranger) if !options.only_these_luns => {
            let message = "--lun of resume says where a LUN of the backup is now, as ID=PATH, and adds none";
            Err(Error::new(ErrorKind::Usage, message).at_path(&stranger.path))
        }
        _ => {
            for unknown in &given {
                tracing::warn!(
                    lun = %unknown,
                    "the backup was begun without this LUN, and its image cannot name it: what lies on it is read through the host"
                );
            }
            Ok(arguments)
        }
    }
}

/// LUNs of the backup that may not be opened any more keep their place, because records refer to it, and are read over NBD.
fn with_those_left_out(mut luns: Vec<Lun>, header: &Header) -> Luns {
    for (place, lun) in header.luns.iter().enumerate() {
        if !luns.iter().any(|known| known.identity == lun.identity) {
            tracing::warn!(lun = %lun.identity, "it {LEFT_OUT}: the rest is read through the host");
            let unread = Box::new(NotRead(LEFT_OUT));
            let left_out = Lun::new(lun.identity.clone(), PathBuf::from(&lun.path), unread);
            luns.insert(place.min(luns.len()), left_out);
        }
    }
    Luns::new(luns)
}

/// The header says how each LUN was proven, and must not come to say too much: one that was proven by its tag, and is not now, is
/// not read any more.
async fn as_proven_as_before(luns: Luns, header: &Header) -> Luns {
    let proofs = luns.proofs().await;
    let lost: Vec<bool> = header
        .luns
        .iter()
        .zip(&proofs)
        .map(|(lun, proof)| lun.proof == LunProof::Tag && !proof.tagged)
        .collect();
    if !lost.contains(&true) {
        return luns;
    }
    let luns = luns.into_luns().into_iter().zip(lost).map(|(lun, lost)| {
        if !lost {
            return lun;
        }
        tracing::warn!(lun = %lun.identity, "it {NOT_PROVEN}: the rest is read through the host");
        Lun::new(
            lun.identity.clone(),
            lun.path().to_owned(),
            Box::new(NotRead(NOT_PROVEN)),
        )
    });
    Luns::new(luns.collect())
}

/// A LUN that an audit found to differ may well be proven by samples again. The backup went on without it, and so does this.
fn distrust_as_before(luns: &Luns, header: &Header) {
    let told = header.job.as_ref().map_or(&[][..], |job| &job.distrusted);
    for (number, lun) in (0..).zip(luns.all()) {
        if told.iter().any(|name| name == lun.identity.as_str()) {
            tracing::warn!(lun = %lun.identity, "an audit found it to differ: the rest is read through the host");
            luns.distrust(number);
        }
    }
}

const NOT_PROVEN: &str = "was proven by its tag when the backup began, and is not now";

const LEFT_OUT: &str = "is no LUN of this job any more";

/// A LUN that is not read, and why.
struct NotRead(&'static str);

impl LunReader for NotRead {
    fn size(&self) -> u64 {
        u64::MAX
    }

    fn block_size(&self) -> u64 {
        1
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other(format!("it {}", self.0)))
    }
}

#[cfg(test)]
mod tests;
