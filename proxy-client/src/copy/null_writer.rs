//! Nowhere: to measure a source.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use volmap::range::ByteRange;

use super::writer::Writer;
use crate::error::Result;

/// Throws away what it is given.
pub(crate) struct NullWriter;

impl Writer for NullWriter {
    fn write(&self, _: u64, _: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn zero(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn flush(&self) -> BoxFuture<'_, Result<Vec<ByteRange>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn finish(self: Arc<Self>, _: u64) -> BoxFuture<'static, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}
