//! What the device-mapper's `thin` and `thin-pool` targets say in their tables and in their status.

use crate::sys::DeviceNumber;
use crate::sys::device_mapper::TargetLine;

const SECTOR: u64 = 512;

/// Why a volume is not frozen, or not mapped, as a thin one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error("it is no thin volume (its device-mapper target is '{0}')")]
    NotThin(String),
    #[error("its device-mapper table has {0} lines, and a thin volume's has one")]
    Lines(usize),
    #[error("what it does not map lies on another volume (external origin)")]
    ExternalOrigin,
    #[error("the pool under it is no thin pool (its device-mapper target is '{0}')")]
    NotAPool(String),
    #[error("its device-mapper target says '{0}', which is not understood")]
    Unreadable(String),
    #[error("the pool's metadata has failed, and with it all of its volumes")]
    Failed,
}

/// The table of a thin volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ThinTarget {
    pub(super) pool: DeviceNumber,
    /// Its number in the pool.
    pub(super) device: u64,
}

impl ThinTarget {
    /// `POOL DEVICE`. With an external origin behind it, what is not mapped would not be zeroes.
    pub(super) fn parse(table: &[TargetLine]) -> Result<Self, TargetError> {
        match Self::parse_any(table)? {
            (target, None) => Ok(target),
            (_, Some(_)) => Err(TargetError::ExternalOrigin),
        }
    }

    /// The same, with the external origin if there is one.
    pub(super) fn parse_any(table: &[TargetLine]) -> Result<(Self, Option<DeviceNumber>), TargetError> {
        let line = only_line(table)?;
        if line.kind != "thin" {
            return Err(TargetError::NotThin(line.kind.clone()));
        }
        let unreadable = || TargetError::Unreadable(line.parameters.clone());
        let mut words = line.parameters.split_whitespace();
        let (Some(pool), Some(device)) = (words.next(), words.next()) else {
            return Err(unreadable());
        };
        let number = |text: &str| DeviceNumber::parse(text).ok_or_else(unreadable);
        let origin = words.next().map(number).transpose()?;
        if words.next().is_some() {
            return Err(unreadable());
        }
        let target = Self {
            pool: number(pool)?,
            device: device.parse().map_err(|_| unreadable())?,
        };
        Ok((target, origin))
    }
}

/// The table of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PoolTarget {
    pub(super) metadata: DeviceNumber,
    pub(super) data: DeviceNumber,
    /// Bytes.
    pub(super) data_block_size: u64,
}

impl PoolTarget {
    /// `METADATA DATA BLOCK_SECTORS …`. What follows says how the pool meets trouble, and moves nothing.
    pub(super) fn parse(table: &[TargetLine]) -> Result<Self, TargetError> {
        let line = only_line(table)?;
        if line.kind != "thin-pool" {
            return Err(TargetError::NotAPool(line.kind.clone()));
        }
        let mut words = line.parameters.split_whitespace();
        let mut next = || {
            words
                .next()
                .ok_or_else(|| TargetError::Unreadable(line.parameters.clone()))
        };
        let unreadable = || TargetError::Unreadable(line.parameters.clone());
        let device = |text: &str| DeviceNumber::parse(text).ok_or_else(unreadable);
        let (metadata, data) = (device(next()?)?, device(next()?)?);
        let sectors: u64 = next()?.parse().map_err(|_| unreadable())?;
        Ok(Self {
            metadata,
            data,
            data_block_size: sectors
                .checked_mul(SECTOR)
                .filter(|&size| size > 0)
                .ok_or_else(unreadable)?,
        })
    }
}

/// Whether a pool still takes new mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PoolMode {
    Writable,
    /// Writers wait or fail; what is mapped stays where it is.
    OutOfDataSpace,
    ReadOnly,
}

/// The status of a pool that has not failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PoolStatus {
    /// Data blocks that it has, free ones too.
    pub(super) data_blocks: u64,
    /// Those of them that are used.
    pub(super) data_used: u64,
    /// Metadata blocks that it has, free ones too.
    pub(super) metadata_blocks: u64,
    /// Those of them that are used.
    pub(super) metadata_used: u64,
    /// Whether writers get errors when it is full; else they wait.
    pub(super) errors_if_full: bool,
    /// The metadata snapshot, if somebody took one: the block of its superblock.
    pub(super) held_root: Option<u64>,
    pub(super) mode: PoolMode,
    /// Whether the pool asks for a check of its metadata.
    pub(super) needs_check: bool,
}

impl PoolStatus {
    /// `TRANSACTION USED/METADATA USED/DATA HELD_ROOT MODE DISCARDS NO_SPACE NEEDS_CHECK [LOW_WATER]`.
    pub(super) fn parse(status: &[TargetLine]) -> Result<Self, TargetError> {
        let line = only_line(status)?;
        if line.kind != "thin-pool" {
            return Err(TargetError::NotAPool(line.kind.clone()));
        }
        let unreadable = || TargetError::Unreadable(line.parameters.clone());
        let words: Vec<&str> = line.parameters.split_whitespace().collect();
        if words == ["Fail"] {
            return Err(TargetError::Failed);
        }
        let &[_, metadata, data, held_root, mode, _, if_full, needs_check, ..] = words.as_slice() else {
            return Err(unreadable());
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| unreadable());
        let share = |text: &str| {
            let (used, total) = text.split_once('/').ok_or_else(unreadable)?;
            Ok::<_, TargetError>((number(used)?, number(total)?))
        };
        let (data_used, data_blocks) = share(data)?;
        let (metadata_used, metadata_blocks) = share(metadata)?;
        Ok(Self {
            data_blocks,
            data_used,
            metadata_blocks,
            metadata_used,
            errors_if_full: if_full == "error_if_no_space",
            held_root: match held_root {
                "-" => None,
                root => Some(number(root)?),
            },
            mode: match mode {
                "rw" => PoolMode::Writable,
                "out_of_data_space" => PoolMode::OutOfDataSpace,
                "ro" => PoolMode::ReadOnly,
                _ => return Err(unreadable()),
            },
            needs_check: match needs_check {
                "-" => false,
                "needs_check" => true,
                _ => return Err(unreadable()),
            },
        })
    }

    /// Why nothing that was read from the metadata is sure to stay true, if so.
    pub(super) fn doubt(&self) -> Option<&'static str> {
        if self.mode == PoolMode::ReadOnly {
            Some("its thin pool went read-only after an error of its metadata")
        } else if self.needs_check {
            Some("its thin pool asks for a check of its metadata")
        } else {
            None
        }
    }
}

/// Sectors that the status of a thin volume says are mapped.
pub(super) fn mapped_sectors(status: &[TargetLine]) -> Result<u64, TargetError> {
    let line = only_line(status)?;
    if line.kind != "thin" {
        return Err(TargetError::NotThin(line.kind.clone()));
    }
    if line.parameters.trim() == "Fail" {
        return Err(TargetError::Failed);
    }
    let first = line.parameters.split_whitespace().next();
    first
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| TargetError::Unreadable(line.parameters.clone()))
}

fn only_line(table: &[TargetLine]) -> Result<&TargetLine, TargetError> {
    match table {
        [line] => Ok(line),
        lines => Err(TargetError::Lines(lines.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, parameters: &str) -> Vec<TargetLine> {
        vec![TargetLine {
            start: 0,
            sectors: 1 << 20,
            kind: kind.into(),
            parameters: parameters.into(),
        }]
    }

    #[test]
    fn a_thin_volume_names_its_pool_and_its_number() {
        let target = ThinTarget::parse(&line("thin", "253:4 17")).unwrap();
        assert_eq!(target.device, 17);
        assert_eq!(target.pool, DeviceNumber { major: 253, minor: 4 });
        assert_eq!(
            ThinTarget::parse(&line("thin", "253:4 17 253:9")),
            Err(TargetError::ExternalOrigin)
        );
        assert_eq!(
            ThinTarget::parse(&line("linear", "253:4 17")),
            Err(TargetError::NotThin("linear".into()))
        );
        let (_, origin) = ThinTarget::parse_any(&line("thin", "253:4 17 253:9")).unwrap();
        assert_eq!(origin.unwrap().minor, 9);
        for bad in [
            "",
            "253:4",
            "253:4 x",
            "/dev/x 17",
            "253:4 17 x",
            "253:4 17 253:9 1",
        ] {
            assert_eq!(
                ThinTarget::parse(&line("thin", bad)),
                Err(TargetError::Unreadable(bad.into()))
            );
        }
        let two = [line("thin", "253:4 17"), line("thin", "253:4 18")].concat();
        assert_eq!(ThinTarget::parse(&two), Err(TargetError::Lines(2)));
        assert_eq!(ThinTarget::parse(&[]), Err(TargetError::Lines(0)));
    }

    #[test]
    fn a_pool_names_its_devices_and_its_blocks() {
        let pool = PoolTarget::parse(&line("thin-pool", "253:2 253:3 128 0 1 skip_block_zeroing ")).unwrap();
        assert_eq!(pool.data_block_size, 64 << 10);
        assert_eq!((pool.metadata.minor, pool.data.minor), (2, 3));
        for bad in [
            "253:2 253:3",
            "253:2 253:3 0 0",
            "253:2 253:3 x 0",
            "253:2 x 128 0",
            "253:2 253:3 18446744073709551615",
        ] {
            assert_eq!(
                PoolTarget::parse(&line("thin-pool", bad)),
                Err(TargetError::Unreadable(bad.into()))
            );
        }
        assert!(PoolTarget::parse(&line("cache", "253:2 253:3 128")).is_err());
    }

    #[test]
    fn the_status_of_a_pool_is_read() {
        let status = |text| PoolStatus::parse(&line("thin-pool", text));
        let good = status("3 15/1024 3200/8000 - rw discard_passdown queue_if_no_space - 1024").unwrap();
        assert_eq!(
            good,
            PoolStatus {
                data_blocks: 8000,
                data_used: 3200,
                metadata_blocks: 1024,
                metadata_used: 15,
                errors_if_full: false,
                held_root: None,
                mode: PoolMode::Writable,
                needs_check: false
            }
        );
        assert_eq!(good.doubt(), None);
        let held = status("3 15/1024 8000/8000 77 out_of_data_space x y - 1024").unwrap();
        assert_eq!((held.held_root, held.mode), (Some(77), PoolMode::OutOfDataSpace));
        assert_eq!(held.doubt(), None);
        assert!(status("3 15/1024 1/8000 - ro x y - 1").unwrap().doubt().is_some());
        assert!(
            status("3 15/1024 1/8000 - rw x y needs_check 1")
                .unwrap()
                .doubt()
                .is_some()
        );
        assert_eq!(status("Fail"), Err(TargetError::Failed));
        for bad in [
            "",
            "Error",
            "3 15/1024 1/8000 - rw x y",
            "3 15/1024 8000 - rw x y - 1",
            "3 15/1024 1/8000 x rw x y - 1",
            "3 15/1024 1/8000 - sleepy x y - 1",
            "3 15/1024 1/8000 - rw x y perhaps 1",
        ] {
            assert_eq!(status(bad), Err(TargetError::Unreadable(bad.into())));
        }
    }

    #[test]
    fn the_status_of_a_thin_volume_counts_its_sectors() {
        let sectors = |text| mapped_sectors(&line("thin", text));
        assert_eq!(sectors("409600 524287"), Ok(409_600));
        assert_eq!(sectors("0 -"), Ok(0));
        assert_eq!(sectors("Fail"), Err(TargetError::Failed));
        for bad in ["-", "Error", ""] {
            assert_eq!(sectors(bad), Err(TargetError::Unreadable(bad.into())));
        }
        assert!(mapped_sectors(&line("linear", "0 -")).is_err());
    }
}
