//! `backup`: a frozen image, from its host and its LUNs into one backup image.

use std::future::pending;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nbd_export::uri::NbdUri;
use uuid::Uuid;
use volmap::identity::Identity;

use super::copy_area::watch;
use super::lineage::{Lineage, ParentOptions, lineage};
use super::set::told_set;
use super::stop::{Stopped, unless_stopped};
use super::thread::on_thread;
use super::unfinished;
use crate::config::{ImagePath, LunArgument, SpoolArgument};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Encoder, Header, JobRecord, LunProof, LunRecord, StoreRecord};
use crate::nbd::{Connection, PoolOptions, is_made_on_request, make};
use crate::output::{FileOutput, Output, StdoutOutput};
use crate::pipeline::{
    CheckpointEvery, FetchPolicy, FrozenSource, Luns, Proof, Spool, Tally, Throttle, Writing, prove_by_tag,
    run,
};
use crate::progress::Progress;
use crate::report::{BackupReport, LunReport, PathReport};
use crate::transport::direct::limits::DIRECT_READ_DEADLINE;
use crate::transport::direct::{Lun, LunOpener, LunPath, NoDirectIo, lies_on, own_identity};
use crate::transport::nbd::{NbdSource, Published};

/// Share of the direct data, in percent, that is compared with the host's unless somebody says otherwise.
pub const AUDIT_PERCENT: f64 = 0.1;

/// What to back up, and to where.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The export of the frozen image.
    pub uri: NbdUri,
    /// The frozen image that the export has to be; any, if not given.
    pub frozen: Option<Uuid>,
    /// The image.
    pub output: ImagePath,
    /// The disks that may be read directly; several paths to one are as many arguments.
    pub luns: Vec<LunArgument>,
    /// Smallest share of the data, in percent, that has to be read directly.
    pub require_direct: Option<f64>,
    /// Data that cannot be read directly ends the job.
    pub no_fallback: bool,
    /// Share of the direct data, in percent, that is compared with the host's.
    pub audit_percent: f64,
    /// The image that this backup continues.
    pub parent: Option<ParentOptions>,
    /// How often an image file gets a checkpoint, from which a backup that was interrupted goes on; `None`: never, and nothing is
    /// kept of a backup that fails.
    pub checkpoints: Option<CheckpointEvery>,
    /// How the host is talked to.
    pub nbd: PoolOptions,
    /// How long a direct read may take.
    pub direct_timeout: Duration,
    /// How fast, changed while it runs.
    pub throttle: Throttle,
    /// Where batches wait for a slow output.
    pub spool: Option<SpoolArgument>,
}

impl BackupOptions {
    /// A backup over NBD, with nothing asked for.
    pub fn new(uri: NbdUri, output: ImagePath) -> Self {
        Self {
            uri,
            frozen: None,
            output,
            luns: Vec::new(),
            require_direct: None,
            no_fallback: false,
            audit_percent: AUDIT_PERCENT,
            parent: None,
            checkpoints: None,
            nbd: PoolOptions::default(),
            direct_timeout: DIRECT_READ_DEADLINE,
            throttle: Throttle::default(),
            spool: None,
        }
    }
}

/// Backs a frozen image up. The image appears under its name, durable, only when every byte of it was confirmed; a report
/// says how the bytes were got, what could not be read, and whether a policy was missed ([`BackupReport::verdict`]).
///
/// # Errors
/// [`ErrorKind::FrozenImageGone`], [`ErrorKind::HostLost`], [`ErrorKind::WrongLun`] and others. The unfinished image is kept where
/// it has a checkpoint and can be finished ([`super::resume`]); the error says so. Else nothing is left behind.
pub async fn backup(
    options: &BackupOptions,
    opener: &dyn LunOpener,
    progress: &Progress,
) -> Result<BackupReport> {
    backup_unless(options, opener, pending(), progress).await
}

/// The same, until `stop` tells why the backup must end.
///
/// # Errors
/// Those of [`backup`], and what `stop` told.
pub async fn backup_unless(
    options: &BackupOptions,
    opener: &dyn LunOpener,
    stop: impl Future<Output = Error> + Send,
    progress: &Progress,
) -> Result<BackupReport> {
    let begun = Instant::now();
    let stopped = Stopped::default();
    let mut stop = pin!(stopped.remembering(stop));
    let earlier = Earlier::default();
    // Each time one LUN less is trusted.
    let mut attempts = 1 + options.luns.len();
    loop {
        let ready = unless_stopped(stop.as_mut(), prepare(options, opener, &earlier, begun)).await?;
        let done = ready.finish(stop.as_mut(), progress).await;
        let ImagePath::File(path) = &options.output else {
            return done.map_err(|error| stopped.or(error));
        };
        let done = done.map_err(|error| unfinished::after(error, path));
        attempts -= 1;
        match done {
            // What the LUN gave may be written already; that image is gone, and of a stream nothing could be taken back.
            Err(error) if attempts > 0 && stopped.lets_begin_anew(&error) => {
                tracing::error!(%error, "the backup begins anew, and reads nothing from this LUN");
            }
            done => return done.map_err(|error| stopped.or(error)),
        }
    }
}

/// What the attempts before this one found out.
#[derive(Clone, Debug, Default)]
pub(super) struct Earlier(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// LUNs that an audit found to differ from what the host reads.
    distrusted: Vec<Identity>,
    /// The frozen image that was read.
    frozen: Option<Uuid>,
    /// Where it is, if the host made it for this job.
    made: Option<NbdUri>,
}

impl Earlier {
    fn distrusts(&self, identity: &Identity) -> bool {
        self.found().distrusted.contains(identity)
    }

    /// Law P5: another attempt is of the same frozen image.
    fn is_of(&self, frozen: Option<Uuid>) -> bool {
        let mut found = self.found();
        let same = found.frozen.is_none() || found.frozen == frozen;
        found.frozen = found.frozen.or(frozen);
        same
    }

    /// Where the frozen image of this job is. The host makes one where it was told to make a new one, once: whatever is lost or begun again
    /// later, the job stays with that one. The connection keeps it until another is there.
    async fn settled(&self, options: &BackupOptions) -> Result<(NbdUri, Option<Connection>)> {
        if let Some(made) = self.found().made.clone() {
            return Ok((made, None));
        }
        if !is_made_on_request(&options.uri) {
            return Ok((options.uri.clone(), None));
        }
        let made = make(&options.uri, options.nbd.deadlines).await;
        let (made, held) = made.map_err(|error| Error::from(error).of_volume(options.uri.export.as_str()))?;
        if let Some(set) = told_set(&held.session().export.description) {
            let message = format!(
                "the host froze a set, {set}: leave the export out of the URI, and write `set={}`",
                options.uri.export
            );
            return Err(Error::new(ErrorKind::Usage, message).of_volume(options.uri.export.as_str()));
        }
        tracing::info!(
            export = made.export.as_str(),
            "the host made a frozen image for this job"
        );
        self.found().made = Some(made.clone());
        Ok((made, Some(held)))
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn prepare(
    options: &BackupOptions,
    opener: &dyn LunOpener,
    earlier: &Earlier,
    begun: Instant,
) -> Result<Ready> {
    let luns = Luns::new(open_luns(&options.luns, options.direct_timeout, opener)?);
    for (number, lun) in (0..).zip(luns.all()) {
        if earlier.distrusts(&lun.identity) {
            luns.distrust(number);
        }
    }
    keep_off_luns(
        match &options.output {
            ImagePath::File(path) => path,
            // It may have been redirected to a file or a device.
            ImagePath::Stdio => Path::new("/dev/stdout"),
        },
        &options.luns,
    )?;
    let spool = open_spool(options.spool.as_ref(), &options.luns)?;
    let stdout = match &options.output {
        ImagePath::Stdio => Some(StdoutOutput::new()?),
        ImagePath::File(path) => {
            unfinished::refuse_resumable(path).await?;
            None
        }
    };
    let identities: Vec<Identity> = luns.all().map(|lun| lun.identity.clone()).collect();
    // Not before all that can be refused here is: a freeze is felt on the host.
    let (uri, held) = earlier.settled(options).await?;
    let options = &BackupOptions {
        uri,
        ..options.clone()
    };
    let source = NbdSource::open(options.uri.clone(), identities, options.nbd).await?;
    drop(held);
    if !earlier.is_of(source.frozen()) {
        let message = "another frozen image stands under its name";
        return Err(Error::new(ErrorKind::FrozenImageGone, message).of_volume(options.uri.export.as_str()));
    }
    let published = source.published().await;
    if options.frozen.is_some() && published.frozen != options.frozen {
        let message = "the host has another frozen image under this name, or none";
        return Err(Error::new(ErrorKind::FrozenImageGone, message).of_volume(options.uri.export.as_str()));
    }
    if published.frozen.is_none() {
        tracing::warn!(
            "the server publishes no frozen image: nothing tells whether the volume changes while it is read"
        );
    }
    warn_of_strangers(&luns, &published);
    if luns.all().next().is_some() {
        prove_by_tag(&options.uri, &luns, options.nbd.deadlines).await?;
    }

    let lineage = lineage(&options.uri, options.parent.as_ref(), &source).await?;
    let mut header = header(options, &source, &luns, &published).await?;
    let (delta, full_because) = match lineage {
        Lineage::Full => (None, None),
        Lineage::FullBecause(reason) => (None, Some(reason)),
        Lineage::Incremental(delta, parent) => {
            header.parent = Some(parent);
            if let (Some(job), Some(told)) = (&mut header.job, &options.parent) {
                // Whoever resumes may be in another directory.
                let image = std::path::absolute(&told.image).unwrap_or_else(|_| told.image.clone());
                job.parent = image.to_str().map(str::to_owned);
                job.bitmap.clone_from(&told.bitmap);
            }
            (Some(delta), None)
        }
    };
    if !header.fits() {
        let message = "the host names more stores than an image can list";
        return Err(Error::new(ErrorKind::HostMisbehaved, message).of_volume(options.uri.export.as_str()));
    }
    // Not before the host has shown that there is something to back up: what a dead writer left is replaced.
    let output: Box<dyn Output> = match (&options.output, stdout) {
        (ImagePath::File(path), _) => Box::new(FileOutput::create(path)?),
        (ImagePath::Stdio, Some(stdout)) => Box::new(stdout),
        (ImagePath::Stdio, None) => Box::new(StdoutOutput::new()?),
    };
    let (encoder, first) = Encoder::new(&header);
    Ok(Ready {
        begun,
        writing: Writing {
            encoder,
            first,
            output,
            tally: Tally::default(),
            // Without a frozen image nothing tells later whether the server still has the same bytes.
            checkpoints: options.checkpoints.filter(|_| source.frozen().is_some()),
            delta,
            spool,
            is_all_read: Arc::default(),
        },
        source,
        luns,
        policy: FetchPolicy {
            audit_percent: options.audit_percent,
            no_fallback: options.no_fallback,
            throttle: options.throttle.clone(),
            ..FetchPolicy::default()
        },
        require_direct: options.require_direct,
        earlier: earlier.clone(),
        parent: header.parent.map(|parent| parent.frozen.to_string()),
        full_because,
    })
}

/// A backup that has everything it needs.
pub(super) struct Ready {
    pub(super) begun: Instant,
    pub(super) source: NbdSource,
    pub(super) luns: Luns,
    pub(super) policy: FetchPolicy,
    pub(super) require_direct: Option<f64>,
    /// What is told of lineage in the report.
    pub(super) parent: Option<String>,
    pub(super) full_because: Option<String>,
    pub(super) writing: Writing,
    pub(super) earlier: Earlier,
}

impl Ready {
    /// Reads, writes and commits, unless `stop` tells why not.
    pub(super) async fn finish(
        self,
        stop: Pin<&mut (impl Future<Output = Error> + Send)>,
        progress: &Progress,
    ) -> Result<BackupReport> {
        let Self { source, luns, .. } = self;
        let is_all_read = Arc::clone(&self.writing.is_all_read);
        progress.begin(source.size(), &self.writing.tally);
        // What could not be gone on with is not stopped: it may still be in time.
        let is_resumable = self.writing.checkpoints.is_some() && self.writing.output.is_resumable();
        let stop = pin!(async {
            tokio::select! {
                reason = stop => reason,
                filling = watch(&source, progress, is_resumable, &is_all_read) => filling,
            }
        });
        let finished = run(&source, &luns, self.policy, self.writing, stop, progress).await;
        progress.end();
        self.earlier.found().distrusted = distrusted(&luns).map(|lun| lun.identity.clone()).collect();
        let finished = finished?;
        let tally = &finished.tally;
        if tally.unreadable.bytes > 0 && tally.bytes_direct + tally.bytes_nbd + tally.bytes_same == 0 {
            let message = "nothing at all could be read";
            return Err(Error::new(ErrorKind::HostCannotRead, message));
        }
        let output = finished.output;
        on_thread(move || output.commit()).await?;

        let mut report = BackupReport::new(source.size(), tally);
        report.frozen = source.frozen().map(|uuid| uuid.to_string());
        report.root = finished.end.root.to_string();
        report.parent = self.parent;
        report.full_because = self.full_because;
        report.seconds = self.begun.elapsed().as_secs_f64();
        report.identity = lun_reports(&luns, tally).await;
        report.reconnections = source.reconnections();
        report.policy_missed = self
            .require_direct
            .filter(|&percent| report.percent_direct < percent);
        Ok(report)
    }
}

/// Opens every LUN under the name that the host has for it, by every path that was given.
pub(super) fn open_luns(
    arguments: &[LunArgument],
    deadline: Duration,
    opener: &dyn LunOpener,
) -> Result<Vec<Lun>> {
    let mut luns: Vec<Lun> = Vec::new();
    for argument in arguments {
        let path = &argument.path;
        let failed = |error| Error::io("opening a LUN", path, error);
        let identity = identity_of(argument)?;
        let reader = match opener.open(path) {
            Ok(reader) => reader,
            // It cannot be read past every cache (law P2); the report says so for every byte on it.
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
                tracing::warn!(path = %path.display(), "it refuses O_DIRECT, so nothing is read directly from it");
                Box::new(NoDirectIo)
            }
            Err(error) => return Err(failed(error)),
        };
        match luns.iter_mut().find(|lun| lun.identity == identity) {
            Some(lun) => {
                if lun.paths().iter().any(|known| known.path == *path) {
                    let message = format!("this path to {identity} is given twice");
                    return Err(Error::new(ErrorKind::Usage, message).at_path(path));
                }
                lun.also_by(path.clone(), reader).map_err(|error| {
                    Error::new(
                        ErrorKind::WrongLun,
                        format!("this is another disk than {identity}"),
                    )
                    .at_path(path)
                    .caused_by(error)
                })?;
                lun.allow(&argument.allowed);
            }
            None => {
                let mut lun = Lun::new(identity, path.clone(), reader).within(deadline);
                lun.allow(&argument.allowed);
                luns.push(lun);
            }
        }
    }
    Ok(luns)
}

/// The name that the host has for a LUN.
pub(super) fn identity_of(argument: &LunArgument) -> Result<Identity> {
    let path = &argument.path;
    let Some(identity) = &argument.identity else {
        let own = own_identity(path).map_err(|error| Error::io("opening a LUN", path, error))?;
        return own.map_err(|why| {
            let message = format!("{why}; here, say which of the host's disks it is: --lun ID=PATH");
            Error::new(ErrorKind::Usage, message).at_path(path)
        });
    };
    if let Some(own) = device_identity(path)
        && contradicts(identity, &own)
    {
        let message = format!("this disk is {own}, not {identity}");
        return Err(Error::new(ErrorKind::WrongLun, message).at_path(path));
    }
    Ok(identity.clone())
}

/// The identity of a block device, where it tells one.
fn device_identity(path: &Path) -> Option<Identity> {
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    is_device.then(|| own_identity(path).ok()?.ok()).flatten()
}

/// Whether a name given by the operator and what the disk says of itself are names of one type for two disks: a clone has
/// the bytes of the other, but not its WWID. Names of two types may well be of one disk.
fn contradicts(given: &Identity, own: &Identity) -> bool {
    let kind = |identity: &Identity| identity.as_str().split(':').next().map(str::to_owned);
    given != own && kind(given) == kind(own)
}

/// An image on the disk that it is made from would be written over what is being read, or be part of it.
pub(super) fn keep_off_luns(output: &Path, luns: &[LunArgument]) -> Result<()> {
    keep_off(luns, "output", output)
}

fn keep_off(luns: &[LunArgument], what: &str, output: &Path) -> Result<()> {
    for lun in luns {
        if lies_on(output, &lun.path)
            .map_err(|error| Error::io("looking where something lies that is written", output, error))?
        {
            let message = format!("the {what} lies on {}, which is being read", lun.path.display());
            return Err(Error::new(ErrorKind::OutputIsSource, message).at_path(output));
        }
    }
    Ok(())
}

/// The spool, which is no more on a LUN that is read than the output is.
pub(super) fn open_spool(told: Option<&SpoolArgument>, luns: &[LunArgument]) -> Result<Option<Arc<Spool>>> {
    let open = |told: &SpoolArgument| {
        keep_off(luns, "spool", &told.directory)?;
        Ok(Arc::new(Spool::open(&told.directory, told.size)?))
    };
    told.map(open).transpose()
}

/// A LUN that the host does not know is most often a misspelt one.
pub(super) fn warn_of_strangers(luns: &Luns, published: &Published) {
    for lun in luns.all().filter(|lun| !published.disks.contains(&lun.identity)) {
        let known: Vec<&str> = published.disks.iter().map(Identity::as_str).collect();
        tracing::warn!(lun = %lun.identity, host = known.join(", "), "the host's volume does not lie on this disk");
    }
}

async fn header(
    options: &BackupOptions,
    source: &NbdSource,
    luns: &Luns,
    published: &Published,
) -> Result<Header> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let above = published.stores.iter().map(|(depth, identity)| StoreRecord {
        depth: Some(*depth),
        identity: identity.clone(),
    });
    let disks = published.disks.iter().map(|identity| StoreRecord {
        depth: None,
        identity: identity.clone(),
    });
    let records = luns.all().zip(luns.proofs().await).map(|(lun, proof)| LunRecord {
        identity: lun.identity.clone(),
        // Samples are compared before the first direct read; what is never proven is never read.
        proof: if proof.tagged {
            LunProof::Tag
        } else {
            LunProof::SampledOnly
        },
        path: lun.path().display().to_string(),
    });
    Ok(Header {
        image: Uuid::new_v4(),
        frozen: source.frozen().unwrap_or_default(),
        parent: None,
        size: source.size(),
        created: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        volume: options.uri.export.as_str().to_owned(),
        description: source.description().await,
        stores: above.chain(disks).collect(),
        luns: records.collect(),
        software: concat!("proxy-client ", env!("CARGO_PKG_VERSION")).to_owned(),
        job: Some(JobRecord {
            uri: options.uri.to_string(),
            require_direct: options.require_direct,
            audit_percent: options.audit_percent,
            no_fallback: options.no_fallback,
            luns: as_arguments(luns),
            distrusted: distrusted(luns).map(|lun| lun.identity.to_string()).collect(),
            parent: None,
            bitmap: None,
        }),
    })
}

/// LUNs that an audit found to differ from what the host reads, in this attempt or before.
fn distrusted(luns: &Luns) -> impl Iterator<Item = &Lun> {
    let numbered = (0..).zip(luns.all());
    numbered.filter_map(|(number, lun)| luns.is_distrusted(number).then_some(lun))
}

/// The LUNs of the job as they would be given again, by the names that the host has for them.
fn as_arguments(luns: &Luns) -> Vec<String> {
    let by_path = |lun: &Lun, path: &LunPath| LunArgument {
        identity: Some(lun.identity.clone()),
        path: path.path.clone(),
        allowed: lun.allowed().to_vec(),
    };
    luns.all()
        .flat_map(|lun| lun.paths().iter().map(move |path| by_path(lun, path).to_string()))
        .collect()
}

async fn lun_reports(luns: &Luns, tally: &Tally) -> Vec<LunReport> {
    let proofs = luns.proofs().await;
    let numbered = (0..).zip(luns.all().zip(proofs));
    let report = |(number, (lun, proof)): (u16, (&Lun, Proof))| LunReport {
        lun: lun.identity.to_string(),
        path: lun.path().display().to_string(),
        proof: proof.name(),
        bytes: tally.by_lun.get(&number).copied().unwrap_or_default(),
        audit_failed: luns.is_distrusted(number),
        paths: lun.paths().iter().map(path_report).collect(),
    };
    numbered.map(report).collect()
}

fn path_report(path: &LunPath) -> PathReport {
    PathReport {
        bytes_read: path.bytes(),
        path: path.path.display().to_string(),
        failures: path.failures(),
        given_up: path.given_up().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_another_wwid_is_another_disk() {
        let id = |text| Identity::from_operator(text).unwrap();
        for (given, own, contradiction) in [
            ("naa:5000a", "naa:5000a", false),
            ("naa:5000a", "naa:5000b", true),
            ("serial:5000a", "naa:5000b", false),
            ("lun0", "naa:5000b", false),
        ] {
            assert_eq!(contradicts(&id(given), &id(own)), contradiction, "{given} {own}");
        }
    }
}
