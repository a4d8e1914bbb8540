//! The tag: a nonce that the host writes for us, and that only the host's own disk can show. It is the one test that tells
//! a clone of a LUN from the LUN (docs/x-volmap.md, "Tags").

use bytes::Bytes;
use nbd_export::proto::{ExportName, TransmissionFlags};
use nbd_export::uri::NbdUri;
use volmap::identity::Identity;
use volmap::limits::{TAG_BLOCK, TAG_MAX};
use volmap::range::ByteRange;
use volmap::tag::MAGIC;

use super::luns::Luns;
use super::random::random_below;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::Deadlines;
use crate::plan::mapped::{MappedExtent, unconfirmed};
use crate::transport::nbd::{Link, LinkError};

/// What is put behind the name of a volume to name its tag.
const SUFFIX: &str = ".tag";

/// How often another nonce is tried because somebody else wrote to the same block, or the mapping moved.
const ATTEMPTS: usize = 4;

/// Looks for the volume's tag, and proves the LUN that it lies on. Without a tag, or with one on none of our LUNs, nothing is
/// proven by it.
///
/// # Errors
/// [`ErrorKind::WrongLun`]: the nonce is not where the host says that it wrote it. Errors of the host.
pub async fn prove_by_tag(frozen: &NbdUri, luns: &Luns, deadlines: Deadlines) -> Result<()> {
    let identities: Vec<Identity> = luns.all().map(|lun| lun.identity.clone()).collect();
    // `vm@monday` is a frozen image of `vm`, and the tag is the volume's.
    let volume = frozen.export.as_str().split('@').next().unwrap_or_default();
    let Ok(export) = ExportName::new(&format!("{volume}{SUFFIX}")) else {
        return Ok(());
    };
    let uri = NbdUri {
        export,
        ..frozen.clone()
    };
    let link = match Link::open(&uri, &identities, deadlines).await {
        Ok(link) => link,
        Err(error) if error.is_connection_lost() => return Err(error.into()),
        Err(error) => {
            tracing::debug!(tag = uri.export.as_str(), %error, "no tag");
            return Ok(());
        }
    };
    if !is_tag(&link, identities.len())
        .await
        .map_err(|error| failed(error, &uri))?
    {
        tracing::debug!(
            export = uri.export.as_str(),
            "this is no tag, or one on no LUN of this job"
        );
        return Ok(());
    }
    for _ in 0..ATTEMPTS {
        match attempt(&link, luns).await.map_err(|error| failed(error, &uri))? {
            Attempt::Proven(disk) => {
                luns.mark_tagged(disk).await;
                tracing::info!(lun = %luns.lun(disk).identity, "the tag's nonce is on it");
                return Ok(());
            }
            Attempt::Absent { disk, path } => {
                let lun = luns.lun(disk);
                let message = format!(
                    "this is not the disk that the host calls {}: its tag is not there",
                    lun.identity
                );
                return Err(Error::new(ErrorKind::WrongLun, message).at_path(&lun.paths()[path].path));
            }
            Attempt::Elsewhere => {
                tracing::warn!(
                    tag = uri.export.as_str(),
                    "the tag has no location on any LUN of this job, and proves nothing"
                );
                return Ok(());
            }
            Attempt::Disturbed => {}
        }
    }
    tracing::warn!(
        tag = uri.export.as_str(),
        "the tag was written by others each time, and proves nothing"
    );
    Ok(())
}

/// Whether the export is a tag on one of our disks, by all that can be known without writing to it. A server that takes every
/// name for its one export, as nbdkit does, would have us write into its disk.
async fn is_tag(link: &Link, luns: usize) -> std::result::Result<bool, LinkError> {
    let session = link.connection.session();
    let writable = !session.offers(TransmissionFlags::READ_ONLY);
    let sized = (2 * TAG_BLOCK..=TAG_MAX).contains(&session.export.size);
    let placed = (0..luns).any(|n| u16::try_from(n).is_ok_and(|n| link.knows_disk(n)));
    if !(writable && sized && placed && link.published.frozen.is_none()) {
        return Ok(false);
    }
    let length = u32::try_from(TAG_BLOCK).unwrap_or(u32::MAX);
    Ok(link.connection.read(0, length).await?.starts_with(MAGIC))
}

enum Attempt {
    Proven(u16),
    /// This path of the LUN does not show it.
    Absent {
        disk: u16,
        path: usize,
    },
    /// The tag lies on no disk that we can read.
    Elsewhere,
    /// Another nonce, or another place, before ours was read.
    Disturbed,
}

async fn attempt(link: &Link, luns: &Luns) -> std::result::Result<Attempt, LinkError> {
    let blocks = link.connection.session().export.size / TAG_BLOCK;
    // The first block is the host's: it makes the tag recognisable.
    let index = 1 + random_below(blocks.saturating_sub(1));
    let Some(block) = ByteRange::new(index * TAG_BLOCK, TAG_BLOCK).filter(|_| blocks > 1) else {
        return Ok(Attempt::Elsewhere);
    };
    let nonce = nonce();
    link.connection.write(block.start(), nonce.clone(), true).await?;
    let extents = link.map(block).await?;
    let [
        MappedExtent {
            range,
            place: Some(place),
            ..
        },
    ] = extents[..]
    else {
        return Ok(Attempt::Elsewhere);
    };
    let Some(on_disk) = ByteRange::new(place.offset, TAG_BLOCK).filter(|_| range == block) else {
        return Ok(Attempt::Elsewhere);
    };
    // Every path has to show it: one may be that of another disk. A LUN that cannot be read there, one that is too short for one, does
    // not show it either.
    let (mut shown, mut failed) = (Vec::new(), Vec::new());
    for (number, read) in luns.lun(place.disk).read_by_each(on_disk).await {
        match read {
            Ok(read) => shown.push((number, read.bytes() == &nonce[..])),
            Err(error) => failed.push((number, error)),
        }
    }
    let found = !shown.is_empty() && shown.iter().all(|(_, shown)| *shown);
    for (number, error) in failed.iter().filter(|_| found) {
        luns.lun(place.disk).paths()[*number]
            .give_up(&format!("it could not be proven to be the LUN: {error}"));
    }
    let now = link.generations(block).await?;
    if !unconfirmed(&extents, &now).is_empty() {
        return Ok(Attempt::Disturbed);
    }
    if found {
        return Ok(Attempt::Proven(place.disk));
    }
    let length = u32::try_from(TAG_BLOCK).unwrap_or(u32::MAX);
    let ours = link.connection.read(block.start(), length).await? == nonce;
    Ok(if ours {
        // With two disks under one name, the operator is to hear of the other one.
        let without = shown.iter().find(|(_, shown)| !shown).map(|(number, _)| *number);
        Attempt::Absent {
            disk: place.disk,
            path: without.or(failed.first().map(|(number, _)| *number)).unwrap_or(0),
        }
    } else {
        Attempt::Disturbed
    })
}

fn failed(error: LinkError, uri: &NbdUri) -> Error {
    let error = match error {
        LinkError::Nbd(error) => Error::from(error),
        LinkError::Map(error) => {
            Error::new(ErrorKind::HostMisbehaved, "the map of the tag contradicts itself").caused_by(error)
        }
    };
    error
        .of_volume(uri.export.as_str())
        .while_doing("proving a LUN by its tag")
}

/// A block of random bytes: nothing that was on a disk before.
fn nonce() -> Bytes {
    let words = std::iter::repeat_with(|| random_below(u64::MAX).to_le_bytes());
    words
        .take(usize::try_from(TAG_BLOCK / 8).unwrap_or_default())
        .flatten()
        .collect()
}
