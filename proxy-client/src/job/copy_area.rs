//! The host's copy area: a backup that is too slow for it stops in good order, while what it has can still be gone on with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nbd_export::proxy::CopyAreaFill;
use tokio::time::{Instant, sleep};

use crate::error::{Error, ErrorKind};
use crate::progress::Progress;
use crate::transport::nbd::NbdSource;

/// How often it is looked at: a look costs the host a handshake.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A copy area that is full this soon, at the pace since the last look, is too full: a few looks, and a checkpoint.
const MARGIN: u64 = 5;

/// How full a copy area is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fill {
    used: u64,
    size: u64,
    /// What can still be added at most.
    growth: u64,
}

impl Fill {
    /// What the description of a frozen export says of it (docs/providers.md, "cow").
    fn told(description: &str) -> Option<Self> {
        let words = description.strip_prefix("frozen image: ")?;
        // Names of sets may have spaces in them; what is told of the copy area stands behind those.
        let told = |key| words.rsplit(' ').find_map(|word| word.strip_prefix(key));
        let (used, size) = told("copy-area=")?.split_once('/')?;
        Some(Self {
            used: used.parse().ok()?,
            size: size.parse().ok()?,
            growth: told("copy-area-growth=")?.parse().ok()?,
        })
    }

    /// Whether old data will find no room within [`MARGIN`] times the time since it was as full as `before`. One that fills no more can
    /// be read from for as long as it takes, however full it is; and so can one with room for all that can still come.
    fn is_nearly_full_since(self, before: Self) -> bool {
        let grown = self.used.saturating_sub(before.used);
        let soon = grown.saturating_mul(MARGIN).min(self.growth);
        grown > 0 && self.used.saturating_add(soon) > self.size
    }
}

/// Watches the copy area that `source` depends on, if there is one, tells `progress` of it, and returns when the backup must not go on:
/// never, unless `may_stop`, nor once everything is read.
pub(super) async fn watch(
    source: &NbdSource,
    progress: &Progress,
    may_stop: bool,
    is_all_read: &AtomicBool,
) -> Error {
    if Fill::told(&source.description().await).is_none() {
        // The host has none, or says nothing of it.
        return std::future::pending().await;
    }
    // Of now: what was told when the job began, or before the host was lost, may be of minutes ago, and how it filled since says nothing of
    // the next seconds.
    let mut before: Option<(Instant, Fill)> = None;
    loop {
        let looked = Instant::now();
        // Without an answer the job finds out by itself what became of its host.
        let answer = source.description_now().await;
        let now = answer.ok().and_then(|description| Fill::told(&description));
        if let Some(Fill { used, size, .. }) = now {
            progress.copy_area(CopyAreaFill { used, size });
        }
        if let (Some((since, before)), Some(now)) = (before, now)
            && may_stop
            && !is_all_read.load(Ordering::Relaxed)
            && now.is_nearly_full_since(before)
        {
            let message = format!(
                "the copy area of the host is nearly full: {} of {} bytes, {} of them of the last {:.1} s",
                now.used,
                now.size,
                now.used - before.used,
                since.elapsed().as_secs_f64()
            );
            return Error::new(ErrorKind::CopyAreaFilling, message);
        }
        before = now.map(|now| (looked, now));
        sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_tells_how_full_it_is() {
        let told = Fill::told(
            "frozen image: method=cow set=copy-area=3/4 copy-area=65536/8323072 copy-area-growth=4096 free-space-left-out=7",
        );
        let expected = Fill {
            used: 65_536,
            size: 8_323_072,
            growth: 4096,
        };
        assert_eq!(told, Some(expected));
        for other in [
            "frozen image: method=reflink",
            "copy-area=1/2 copy-area-growth=1",
            "frozen image: copy-area=1/2",
            "frozen image: copy-area-growth=1",
            "frozen image: copy-area=1 copy-area-growth=1",
            "frozen image: copy-area=-1/2 copy-area-growth=1",
        ] {
            assert_eq!(Fill::told(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_still_fills_is_nearly_full() {
        let is_full = |before, used, growth| {
            let at = |used| Fill {
                used,
                size: 100,
                growth,
            };
            at(used).is_nearly_full_since(at(before))
        };
        assert!(!is_full(99, 99, 50) && !is_full(99, 50, 100));
        assert!(!is_full(10, 20, 300) && !is_full(70, 75, 300));
        assert!(
            is_full(79, 84, 300) && is_full(98, 99, 2) && is_full(50, 100, 1) && is_full(0, 17, u64::MAX)
        );
        assert!(
            !is_full(0, 90, 10) && !is_full(50, 100, 0),
            "there is room for the rest"
        );
        assert!(is_full(0, 90, 11));
    }
}
