//! One connection to an export, with what its contexts mean.

use nbd_export::proto::{ContextId, TransmissionFlags};
use nbd_export::uri::NbdUri;
use volmap::identity::Identity;
use volmap::range::ByteRange;

use super::published::Published;
use crate::nbd::{BufferPool, Connection, Deadlines, NbdError, list_contexts_within};
use crate::plan::mapped::{ContextChunk, ContextRole, MappedExtent, merge_chunks};

/// Longest range of a BLOCK_STATUS with 32-bit lengths.
const LONGEST_COMPACT_STATUS: u64 = 1 << 31;
/// Longest range of one with 64-bit lengths.
const LONGEST_STATUS: u64 = 1 << 46;

/// How often names are listed again because others were to be had a moment later.
const ATTEMPTS: usize = 4;

/// A connection and the meaning of its contexts.
pub struct Link {
    /// The session.
    pub connection: Connection,
    /// What the export says of itself; the frozen image is the one that this connection selected.
    pub published: Published,
    roles: Vec<(ContextId, ContextRole)>,
    longest_status: u64,
}

impl Link {
    /// Connects, and selects what the export offers and the job can use. Which names there are is asked on a connection
    /// before.
    ///
    /// # Errors
    /// [`NbdError`].
    pub async fn open(uri: &NbdUri, luns: &[Identity], deadlines: Deadlines) -> Result<Self, NbdError> {
        let mut attempt = 1;
        let (mut published, connection, selected) = loop {
            let listed = list_contexts_within(uri, Published::queries(), deadlines).await?;
            let published = Published::from_names(listed.iter().map(|name| name.as_str()));
            let selection = published.selection(luns);
            let connection =
                Connection::connect_with(uri, selection, deadlines, BufferPool::default()).await?;
            let contexts = &connection.session().contexts;
            let selected = Published::from_names(contexts.iter().map(|context| context.name.as_str())).frozen;
            // Between the two connections the name may have gone to another frozen image, which then was not selected.
            if selected == published.frozen || attempt == ATTEMPTS {
                break (published, connection, selected);
            }
            attempt += 1;
        };
        published.frozen = selected;
        let session = connection.session();
        let roles = session
            .contexts
            .iter()
            .filter_map(|context| Some((context.id, Published::role(context.name.as_str(), luns)?)))
            .collect();
        let extended = session.style == nbd_export::proto::HeaderStyle::Extended;
        Ok(Self {
            longest_status: if extended {
                LONGEST_STATUS
            } else {
                LONGEST_COMPACT_STATUS
            },
            connection,
            published,
            roles,
        })
    }

    /// Whether locations on that disk are selected.
    pub fn knows_disk(&self, number: u16) -> bool {
        self.roles
            .iter()
            .any(|(_, role)| *role == ContextRole::Disk(number))
    }

    /// The mapping of `range` from its start on, from one reply. A server of ordinary exports that fails to tell its holes
    /// has none: everything is read.
    ///
    /// # Errors
    /// [`NbdError`]; contradictions in the map are the server's misbehaviour.
    pub async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>, LinkError> {
        match self.status(range, None).await {
            Err(LinkError::Nbd(error @ NbdError::Server(_)))
                if self.published.frozen.is_none() && !error.is_gone() =>
            {
                tracing::warn!(%error, %range, "the server fails to tell holes, so everything is read");
                Ok(merge_chunks(range, &[])?)
            }
            status => status,
        }
    }

    /// The generations of `range` from its start on, alone if the server can filter.
    ///
    /// # Errors
    /// As with [`Link::map`].
    pub async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>, LinkError> {
        let alone = self
            .roles
            .iter()
            .find(|(_, role)| *role == ContextRole::Generation)
            .map(|(id, _)| vec![*id]);
        let filters = self
            .connection
            .session()
            .offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        self.status(range, alone.filter(|_| filters)).await
    }

    async fn status(
        &self,
        range: ByteRange,
        filter: Option<Vec<ContextId>>,
    ) -> Result<Vec<MappedExtent>, LinkError> {
        let asked = ByteRange::new(range.start(), range.len().min(self.longest_status)).unwrap_or(range);
        if self.connection.session().contexts.is_empty() {
            return Ok(merge_chunks(asked, &[])?);
        }
        let statuses = self.connection.block_status(asked, filter).await?;
        let chunks: Vec<ContextChunk> = statuses
            .into_iter()
            .filter_map(|status| {
                let (_, role) = self.roles.iter().find(|(id, _)| *id == status.context)?;
                let descriptors = status.descriptors.iter().map(|d| (d.length, d.status)).collect();
                Some(ContextChunk {
                    role: *role,
                    descriptors,
                })
            })
            .collect();
        Ok(merge_chunks(asked, &chunks)?)
    }
}

/// Why a link gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection or the server.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// What the server says of the map.
    #[error(transparent)]
    Map(#[from] crate::plan::mapped::MappingError),
}
