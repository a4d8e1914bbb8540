//! Cross-path audit: a share of the direct data once more, through the host.

use futures_util::stream::{self, StreamExt};
use volmap::range::ByteRange;

use super::{Piece, Work, parts};
use crate::error::{ErrorKind, Result};
use crate::pipeline::limits::{AUDIT_SAMPLE, NBD_READS_IN_FLIGHT};
use crate::pipeline::source::FrozenSource;

impl<S: FrozenSource> Work<'_, S> {
    /// Compares samples of what was read directly, and confirmed, with what the host gives.
    ///
    /// # Errors
    /// [`ErrorKind::AuditFailed`]: they differ. The LUN is not trusted any more, and nothing that it gave may be committed.
    pub(super) async fn audit(&mut self, pieces: impl Iterator<Item = &Piece>) -> Result<()> {
        let fetcher = self.fetcher;
        if fetcher.policy.audit_percent <= 0.0 {
            return Ok(());
        }
        let mut samples: Vec<(u16, ByteRange)> = Vec::new();
        for piece in pieces {
            let Some(place) = piece.extent.place else { continue };
            let chosen = parts(piece.extent.range, AUDIT_SAMPLE).filter(|_| self.is_chosen());
            // A sample is compared with one segment.
            samples.extend(chosen.flat_map(|sample| {
                self.assembly
                    .cut(sample)
                    .map(|part| (place.disk, part))
                    .collect::<Vec<_>>()
            }));
        }
        let throttle = &fetcher.policy.throttle;
        let mut reads = stream::iter(samples)
            .map(|(disk, range)| async move {
                let _under_way = throttle.begin(range.len()).await;
                (disk, range, fetcher.source.read(range).await)
            })
            .buffer_unordered(NBD_READS_IN_FLIGHT);
        while let Some((disk, range, read)) = reads.next().await {
            let through_host = match read {
                Ok(bytes) => bytes,
                // There is nothing to compare with, and nothing against what was read.
                Err(error) if error.kind() == ErrorKind::HostCannotRead => continue,
                Err(error) => return Err(error),
            };
            let same = match self.assembly.bytes(range) {
                Some(direct) => direct == &through_host[..],
                None => through_host.iter().all(|&byte| byte == 0),
            };
            if !same {
                return Err(fetcher.luns.note_difference(disk, range));
            }
            self.tally.bytes_audited += range.len();
        }
        Ok(())
    }

    fn is_chosen(&self) -> bool {
        const MILLION: u64 = 1_000_000;
        #[allow(
            clippy::cast_precision_loss,
            reason = "a random number below a million is exact"
        )]
        let drawn = self.fetcher.luns.random().below(MILLION) as f64 / MILLION as f64;
        drawn < self.fetcher.policy.audit_percent / 100.0
    }
}
