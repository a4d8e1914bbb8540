//! What a copy writes.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use volmap::range::ByteRange;

use crate::error::Result;

/// A target. Writes to different places run side by side, in any order.
pub(crate) trait Writer: Send + Sync {
    /// Whether everything must be written front to back, one after the other.
    fn is_stream(&self) -> bool {
        false
    }

    /// Writes bytes.
    fn write(&self, offset: u64, bytes: Bytes) -> BoxFuture<'_, Result<()>>;

    /// Makes bytes zero.
    fn zero(&self, range: ByteRange) -> BoxFuture<'_, Result<()>>;

    /// Makes all that was written durable, as far as it is this writer's to say. What may be lost all the same is returned: it
    /// must be written again, and flushed again. Nothing is being written meanwhile.
    fn flush(&self) -> BoxFuture<'_, Result<Vec<ByteRange>>>;

    /// After the last flush: the target has `size` bytes of the source, and is whole.
    fn finish(self: Arc<Self>, size: u64) -> BoxFuture<'static, Result<()>>;
}
