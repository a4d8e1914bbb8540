//! What an incremental backup continues, and who says what changed since.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use nbd_export::proto::ContextName;
use nbd_export::uri::NbdUri;
use volmap::range::ByteRange;

use super::thread::on_thread;
use crate::chain::{Chain, find_continued};
use crate::error::{Error, ErrorKind, Result};
use crate::image::ParentRecord;
use crate::nbd::{Pool, PoolOptions};
use crate::pipeline::{Changes, Delta, FrozenSource};
use crate::transport::nbd::NbdSource;

/// What an incremental backup continues.
#[derive(Clone, Debug)]
pub struct ParentOptions {
    /// The image. Images that it continues itself lie beside it.
    pub image: PathBuf,
    /// What happens where it cannot be continued.
    pub policy: ParentPolicy,
    /// A dirty bitmap of QEMU that tells what changed, in place of the host's own word. That it was begun when the parent was made is
    /// the operator's word.
    pub bitmap: Option<String>,
}

/// What happens where a parent cannot be continued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum ParentPolicy {
    /// The backup becomes a full one, and says why.
    Full,
    /// The backup fails.
    Refuse,
}

/// What the backup turned out to be.
pub(super) enum Lineage {
    /// A full one from the start.
    Full,
    /// A full one for want of lineage.
    FullBecause(String),
    /// Incremental.
    Incremental(Arc<Delta>, ParentRecord),
}

/// Looks whether the backup can be incremental.
///
/// # Errors
/// [`ErrorKind::LineageBroken`] where the policy wants it; errors of the host.
pub(super) async fn lineage(
    uri: &NbdUri,
    parent: Option<&ParentOptions>,
    source: &NbdSource,
) -> Result<Lineage> {
    let Some(parent) = parent else {
        return Ok(Lineage::Full);
    };
    match continued(uri, parent, source).await {
        Ok((delta, record)) => Ok(Lineage::Incremental(Arc::new(delta), record)),
        Err(error)
            if parent.policy == ParentPolicy::Full
                && matches!(
                    error.kind(),
                    ErrorKind::LineageBroken
                        | ErrorKind::ImageBad
                        | ErrorKind::ImageUnsupported
                        | ErrorKind::Io
                ) =>
        {
            tracing::warn!(%error, "this becomes a full backup");
            Ok(Lineage::FullBecause(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

async fn continued(
    uri: &NbdUri,
    parent: &ParentOptions,
    source: &NbdSource,
) -> Result<(Delta, ParentRecord)> {
    let image = parent.image.clone();
    let chain = on_thread(move || opened(&find_continued(&image)?)).await?;
    let record = ParentRecord {
        frozen: chain.header().frozen,
        root: chain.end().root,
    };
    let delta = changed_since(uri, chain, parent, source).await?;
    Ok((delta, record))
}

/// Opens a chain, and computes its roots.
pub(super) fn opened(paths: &[PathBuf]) -> Result<Arc<Chain>> {
    let chain = Chain::open(paths)?;
    chain.check()?;
    Ok(Arc::new(chain))
}

/// What changed since the newest image of a chain, as the host tells it.
///
/// # Errors
/// [`ErrorKind::LineageBroken`]: the host cannot tell. [`ErrorKind::FrozenImageGone`].
pub(super) async fn changed_since(
    uri: &NbdUri,
    chain: Arc<Chain>,
    parent: &ParentOptions,
    source: &NbdSource,
) -> Result<Delta> {
    let broken = |message: String| Error::new(ErrorKind::LineageBroken, message).at_path(&parent.image);
    let older = chain.header().frozen;
    let context = match &parent.bitmap {
        Some(bitmap) => format!("qemu:dirty-bitmap:{bitmap}"),
        None if older.is_nil() => {
            return Err(broken(
                "the parent image names no frozen image, so no host can tell what changed since".into(),
            ));
        }
        None => format!("x-volmap:changed:{older}"),
    };
    let name = ContextName::new(&context).map_err(|error| broken(format!("{context}: {error}")))?;
    let pool = Pool::open(uri.clone(), &[name], PoolOptions::default()).await?;
    if pool.session().context_id(&context).is_none() {
        return Err(broken(format!(
            "the host cannot tell what changed since the parent: it offers no {context}"
        )));
    }
    if let Some(frozen) = source.frozen() {
        let frozen = format!("x-volmap:frozen:{frozen}");
        if pool.session().context_id(&frozen).is_none() {
            return Err(Error::new(
                ErrorKind::FrozenImageGone,
                "another frozen image stands under its name",
            ));
        }
    }
    let changes = Box::new(TheHostsWord { pool, context });
    Ok(Delta::new(chain, changes, source.size()))
}

/// A metadata context that tells what changed: 0 says that bytes are the same.
struct TheHostsWord {
    pool: Pool,
    context: String,
}

impl Changes for TheHostsWord {
    fn changes(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<(u64, bool)>>> {
        Box::pin(async move {
            let told = self.pool.status(range, &self.context).await?;
            Ok(told
                .iter()
                .map(|descriptor| (descriptor.length, descriptor.status != 0))
                .collect())
        })
    }
}
