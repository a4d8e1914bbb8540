//! An NBD client that blocks, and logs what it writes.

use std::sync::Arc;

use bytes::Bytes;
use nbd_export::proto::ContextName;
use nbd_export::uri::NbdUri;
use proxy_client::nbd::{Connection, NbdError};
use tokio::runtime::Handle;
use volmap::range::ByteRange;

use super::log::{Change, Kind, Log};

/// Longest read in one request.
const READ: u64 = 1 << 20;

/// One connection. Any thread may use it, but none that drives the runtime.
pub struct Client {
    handle: Handle,
    connection: Connection,
    log: Arc<Log>,
    /// Whether each WRITE is to be on stable storage when it is replied to.
    pub fua: bool,
}

impl Client {
    /// Connects on `handle`.
    ///
    /// # Errors
    /// The host is not there, or has no such export.
    pub fn connect(handle: &Handle, uri: &NbdUri, contexts: &[&str]) -> Result<Self, NbdError> {
        let contexts = contexts.iter().map(|name| ContextName::new(name).unwrap());
        Ok(Self {
            connection: handle.block_on(Connection::connect(uri, contexts.collect()))?,
            handle: handle.clone(),
            log: Arc::new(Log::new()),
            fua: false,
        })
    }

    /// What this client has written.
    pub fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }

    /// Changes the volume; writers never see an error.
    pub fn change(&self, change: Change) {
        self.try_change(change)
            .unwrap_or_else(|error| panic!("{change:?}: {error}"));
    }

    /// Changes the volume, where the host may be killed meanwhile.
    ///
    /// # Errors
    /// Whatever comes back.
    pub fn try_change(&self, change: Change) -> Result<(), NbdError> {
        self.log.sent(change);
        let range = ByteRange::new(change.offset, change.len).unwrap();
        self.handle.block_on(async {
            match change.kind {
                Kind::Write(stamp) => {
                    let bytes = change.bytes(stamp);
                    self.connection.write(change.offset, bytes, self.fua).await
                }
                Kind::Trim => self.connection.trim(range).await,
                Kind::WriteZeroes { no_hole } => self.connection.write_zeroes(range, no_hole).await,
            }
        })?;
        self.log.replied();
        Ok(())
    }

    /// Has everything written before put on stable storage.
    ///
    /// # Errors
    /// Whatever comes back.
    pub fn flush(&self) -> Result<(), NbdError> {
        self.handle.block_on(self.connection.flush())
    }

    /// What the export said of itself when the connection was made.
    pub fn description(&self) -> &str {
        &self.connection.session().export.description
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.connection.session().export.size
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// Whatever comes back.
    pub fn read(&self, offset: u64, len: u64) -> Result<Bytes, NbdError> {
        let len = u32::try_from(len).unwrap();
        self.handle.block_on(self.connection.read(offset, len))
    }

    /// Reads all of the export.
    ///
    /// # Errors
    /// Whatever comes back.
    pub fn read_all(&self) -> Result<Vec<u8>, NbdError> {
        let mut content = Vec::new();
        while (content.len() as u64) < self.size() {
            let at = content.len() as u64;
            content.extend_from_slice(&self.read(at, READ.min(self.size() - at))?);
        }
        Ok(content)
    }

    /// The descriptors of the sole context that was asked for, over all of the export: length and status, neighbours of
    /// one status joined.
    ///
    /// # Errors
    /// Whatever comes back.
    pub fn status(&self) -> Result<Vec<(u64, u64)>, NbdError> {
        let (mut at, mut found) = (0, Vec::<(u64, u64)>::new());
        while let Some(range) = ByteRange::from_bounds(at, self.size()) {
            let answer = self.handle.block_on(self.connection.block_status(range, None))?;
            for descriptor in &answer[0].descriptors {
                at += descriptor.length;
                match found.last_mut() {
                    Some((len, status)) if *status == descriptor.status => *len += descriptor.length,
                    _ => found.push((descriptor.length, descriptor.status)),
                }
            }
        }
        Ok(found)
    }
}
