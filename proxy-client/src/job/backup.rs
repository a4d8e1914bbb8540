//! `backup`: a frozen image, from its host and its LUNs into one backup image.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nbd_export::uri::NbdUri;
use uuid::Uuid;
use volmap::identity::Identity;

use crate::config::{ImagePath, LunArgument};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Encoder, Header, LunProof, LunRecord, StoreRecord};
use crate::output::{FileOutput, Output, StdoutOutput};
use crate::pipeline::{FetchPolicy, FrozenSource, Luns, prove_by_tag, run};
use crate::progress::Progress;
use crate::report::{BackupReport, LunReport};
use crate::transport::direct::{Lun, LunOpener, NoDirectIo, lies_on, own_identity};
use crate::transport::nbd::{NbdSource, Published};

/// What to back up, and to where.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The export of the frozen image.
    pub uri: NbdUri,
    /// The image.
    pub output: ImagePath,
    /// The disks that may be read directly.
    pub luns: Vec<LunArgument>,
    /// Smallest share of the data, in percent, that has to be read directly.
    pub require_direct: Option<f64>,
    /// Share of the direct data, in percent, that is compared with the host's.
    pub audit_percent: f64,
}

/// Backs a frozen image up. The image appears under its name, durable, only when every byte of it was confirmed; a report
/// says how the bytes were got, and whether a policy was missed ([`BackupReport::policy_verdict`]).
///
/// # Errors
/// [`ErrorKind::FrozenImageGone`], [`ErrorKind::HostLost`], [`ErrorKind::WrongLun`] and others; nothing is left behind.
pub async fn backup(
    options: &BackupOptions,
    opener: &dyn LunOpener,
    progress: &Progress,
) -> Result<BackupReport> {
    let begun = Instant::now();
    let luns = open_luns(&options.luns, opener)?;
    keep_off_luns(
        match &options.output {
            ImagePath::File(path) => path,
            // It may have been redirected to a file or a device.
            ImagePath::Stdio => Path::new("/dev/stdout"),
        },
        &options.luns,
    )?;
    let output: Box<dyn Output> = match &options.output {
        ImagePath::Stdio => Box::new(StdoutOutput::new()?),
        ImagePath::File(path) => Box::new(FileOutput::create(path)?),
    };
    let identities: Vec<Identity> = luns.all().map(|lun| lun.identity.clone()).collect();
    let source = NbdSource::open(options.uri.clone(), identities).await?;
    let published = source.published().await;
    if published.frozen.is_none() {
        tracing::warn!(
            "the server publishes no frozen image: nothing tells whether the volume changes while it is read"
        );
    }
    warn_of_strangers(&luns, &published);
    if luns.all().next().is_some() {
        prove_by_tag(&options.uri, &luns).await?;
    }

    let header = header(options, &source, &luns, &published).await?;
    if !header.fits() {
        let message = "the host names more stores than an image can list";
        return Err(Error::new(ErrorKind::HostMisbehaved, message).of_volume(options.uri.export.as_str()));
    }
    progress.begin(source.size());
    let policy = FetchPolicy {
        audit_percent: options.audit_percent,
    };
    let finished = run(&source, &luns, policy, Encoder::new(&header), output, progress).await;
    progress.end();
    let finished = finished?;
    finished.output.commit()?;

    let mut report = BackupReport::new(source.size(), &finished.tally);
    report.frozen = source.frozen().map(|uuid| uuid.to_string());
    report.root = finished.end.root.to_string();
    report.seconds = begun.elapsed().as_secs_f64();
    report.identity = lun_reports(&luns).await;
    report.policy_missed = options
        .require_direct
        .filter(|&percent| report.percent_direct < percent);
    Ok(report)
}

/// Opens every LUN under the name that the host has for it.
fn open_luns(arguments: &[LunArgument], opener: &dyn LunOpener) -> Result<Luns> {
    let mut luns: Vec<Lun> = Vec::new();
    for LunArgument { identity, path } in arguments {
        let failed = |error| Error::io("opening a LUN", path, error);
        let identity = match identity {
            Some(identity) => {
                if let Some(own) = device_identity(path)
                    && contradicts(identity, &own)
                {
                    let message = format!("this disk is {own}, not {identity}");
                    return Err(Error::new(ErrorKind::WrongLun, message).at_path(path));
                }
                identity.clone()
            }
            None => own_identity(path).map_err(failed)?.ok_or_else(|| {
                let message =
                    "this disk has no identity of its own; say which of the host's it is: --lun ID=PATH";
                Error::new(ErrorKind::Usage, message).at_path(path)
            })?,
        };
        if luns.iter().any(|lun| lun.identity == identity) {
            let message = format!("{identity} is given twice; one path to a LUN is enough");
            return Err(Error::new(ErrorKind::Usage, message).at_path(path));
        }
        match opener.open(path) {
            Ok(reader) => luns.push(Lun::new(identity, path.clone(), reader)),
            // It cannot be read past every cache (law P2); the report says so for every byte on it.
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
                tracing::warn!(path = %path.display(), "it refuses O_DIRECT, so nothing is read directly from it");
                luns.push(Lun::new(identity, path.clone(), Box::new(NoDirectIo)));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Luns::new(luns))
}

/// The identity of a block device, where it tells one.
fn device_identity(path: &Path) -> Option<Identity> {
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    is_device.then(|| own_identity(path).ok().flatten()).flatten()
}

/// Whether a name given by the operator and what the disk says of itself are names of one type for two disks: a clone has
/// the bytes of the other, but not its WWID. Names of two types may well be of one disk.
fn contradicts(given: &Identity, own: &Identity) -> bool {
    let kind = |identity: &Identity| identity.as_str().split(':').next().map(str::to_owned);
    given != own && kind(given) == kind(own)
}

/// An image on the disk that it is made from would be written over what is being read, or be part of it.
fn keep_off_luns(output: &Path, luns: &[LunArgument]) -> Result<()> {
    for lun in luns {
        if lies_on(output, &lun.path)
            .map_err(|error| Error::io("looking where the output lies", output, error))?
        {
            let message = format!("the output lies on {}, which is being read", lun.path.display());
            return Err(Error::new(ErrorKind::OutputIsSource, message).at_path(output));
        }
    }
    Ok(())
}

/// A LUN that the host does not know is most often a misspelt one.
fn warn_of_strangers(luns: &Luns, published: &Published) {
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
        path: lun.path.display().to_string(),
    });
    Ok(Header {
        image: Uuid::new_v4(),
        frozen: source.frozen().unwrap_or_default(),
        size: source.size(),
        created: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        volume: options.uri.export.as_str().to_owned(),
        description: source.description().await,
        stores: above.chain(disks).collect(),
        luns: records.collect(),
        software: concat!("proxy-client ", env!("CARGO_PKG_VERSION")).to_owned(),
    })
}

async fn lun_reports(luns: &Luns) -> Vec<LunReport> {
    let report = |(lun, proof): (&Lun, crate::pipeline::Proof)| LunReport {
        lun: lun.identity.to_string(),
        path: lun.path.display().to_string(),
        proof: proof.name(),
    };
    luns.all().zip(luns.proofs().await).map(report).collect()
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
