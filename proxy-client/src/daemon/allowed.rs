//! Parts of a LUN that may be read for a host: everything else fails as a read of a broken disk does, with a reason for the report,
//! and goes over NBD.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use volmap::range::ByteRange;

use crate::transport::direct::{Geometry, LunOpener, LunReader};

/// Opens LUNs for one host.
pub(super) struct AllowedOpener<'a> {
    inner: &'a dyn LunOpener,
    /// By path; `None`: all of it.
    luns: BTreeMap<PathBuf, Option<Vec<ByteRange>>>,
}

impl<'a> AllowedOpener<'a> {
    pub(super) fn new(inner: &'a dyn LunOpener, luns: BTreeMap<PathBuf, Option<Vec<ByteRange>>>) -> Self {
        Self { inner, luns }
    }
}

impl LunOpener for AllowedOpener<'_> {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>> {
        let Some(ranges) = self.luns.get(path) else {
            // An unfinished image says what it was read from, and the configuration may have changed since.
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the configuration does not allow this host this LUN",
            ));
        };
        let inner = self.inner.open(path)?;
        Ok(match ranges {
            None => inner,
            Some(ranges) => Box::new(Parts {
                inner,
                ranges: ranges.clone(),
            }),
        })
    }
}

struct Parts {
    inner: Box<dyn LunReader>,
    ranges: Vec<ByteRange>,
}

impl LunReader for Parts {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn block_size(&self) -> u64 {
        self.inner.block_size()
    }

    fn geometry(&self) -> Option<Geometry> {
        self.inner.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        // A read is of whole blocks, and so may pass a range by less than one on either side.
        let slack = self.inner.block_size().saturating_sub(1);
        let end = offset.saturating_add(buf.len() as u64);
        let within = |range: &ByteRange| {
            offset.saturating_add(slack) >= range.start() && end <= range.end().saturating_add(slack)
        };
        if !self.ranges.iter().any(within) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it is not in the ranges that the configuration allows this host",
            ));
        }
        self.inner.read_at(offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeroes;

    impl LunReader for Zeroes {
        fn size(&self) -> u64 {
            1 << 30
        }

        fn block_size(&self) -> u64 {
            512
        }

        fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<usize> {
            Ok(buf.len())
        }
    }

    #[test]
    fn a_range_is_kept_to_but_for_the_blocks_at_its_ends() {
        let range = |start, end| ByteRange::from_bounds(start, end).unwrap();
        let parts = Parts {
            inner: Box::new(Zeroes),
            ranges: vec![range(10_000, 20_000), range(40_960, 81_920)],
        };
        let may = |offset, len| parts.read_at(offset, &mut vec![0; len]).is_ok();
        assert!(may(9728, 10_752) && may(10_240, 512) && may(19_968, 512) && may(40_960, 40_960));
        assert!(!may(9216, 1024) && !may(19_968, 1024) && !may(20_480, 512) && !may(0, 512));
        assert!(!may(18_944, 40_960) && !may(81_920, 512) && !may(40_448, 512));
    }
}
