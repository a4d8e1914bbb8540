//! Device-mapper tables: which devices lie under a device.

use std::io;

use super::sysfs::SECTOR;
use crate::range::ByteRange;
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::{Control, DeviceStatus, TargetLine};

/// Whoever knows device-mapper tables: the kernel.
pub(super) trait DeviceMapper: Send + Sync + std::fmt::Debug {
    /// Name, UUID and event number.
    fn device_status(&self, device: DeviceNumber) -> io::Result<DeviceStatus>;
    /// The live table.
    fn table(&self, device: DeviceNumber) -> io::Result<Vec<TargetLine>>;
    /// Whether anything happened to any device since this was opened.
    fn events_since_armed(&self) -> io::Result<bool>;
}

impl DeviceMapper for Control {
    fn device_status(&self, device: DeviceNumber) -> io::Result<DeviceStatus> {
        self.device_status(device)
    }

    fn table(&self, device: DeviceNumber) -> io::Result<Vec<TargetLine>> {
        self.table(device)
    }

    fn events_since_armed(&self) -> io::Result<bool> {
        self.events_since_armed()
    }
}

/// A piece of a device that lies in one piece on a lower one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinearTarget {
    /// Bytes of the device.
    pub(super) range: ByteRange,
    /// The device below.
    pub(super) device: DeviceNumber,
    /// Byte offset there.
    pub(super) offset: u64,
}

/// Why a table is not followed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("its device-mapper target '{0}' is not understood (only 'linear' is)")]
    Target(String),
    #[error("its device-mapper table has a line that cannot be read: '{0}'")]
    Line(String),
    #[error("its device-mapper table has gaps or overlaps")]
    Gaps,
    #[error("it has no live device-mapper table")]
    Empty,
}

/// The pieces of a table of linear targets, in order, without gaps.
pub(super) fn linear_targets(table: &[TargetLine]) -> Result<Vec<LinearTarget>, TableError> {
    if table.is_empty() {
        return Err(TableError::Empty);
    }
    let mut covered = 0;
    table
        .iter()
        .map(|line| {
            if line.kind != "linear" {
                return Err(TableError::Target(line.kind.clone()));
            }
            let target = linear_target(line).ok_or_else(|| TableError::Line(line.parameters.clone()))?;
            if target.range.start() != covered {
                return Err(TableError::Gaps);
            }
            covered = target.range.end();
            Ok(target)
        })
        .collect()
}

/// `MAJOR:MINOR OFFSET`, in sectors.
fn linear_target(line: &TargetLine) -> Option<LinearTarget> {
    let mut words = line.parameters.split_whitespace();
    let device = DeviceNumber::parse(words.next()?)?;
    let offset = words.next()?.parse::<u64>().ok()?.checked_mul(SECTOR)?;
    let range = ByteRange::new(line.start.checked_mul(SECTOR)?, line.sectors.checked_mul(SECTOR)?)?;
    let target = LinearTarget {
        range,
        device,
        offset,
    };
    words.next().is_none().then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(start: u64, sectors: u64, kind: &str, parameters: &str) -> TargetLine {
        TargetLine {
            start,
            sectors,
            kind: kind.into(),
            parameters: parameters.into(),
        }
    }

    #[test]
    fn several_linear_targets_follow_each_other() {
        let targets =
            linear_targets(&[line(0, 8, "linear", "8:16 2048"), line(8, 4, "linear", "259:1 0")]).unwrap();
        assert_eq!(targets[0].offset, 2048 * 512);
        assert_eq!(
            targets[1],
            LinearTarget {
                range: ByteRange::new(4096, 2048).unwrap(),
                device: DeviceNumber { major: 259, minor: 1 },
                offset: 0
            }
        );
    }

    #[test]
    fn what_is_not_linear_is_refused_by_name() {
        let table = [
            line(0, 8, "linear", "8:16 2048"),
            line(8, 4, "striped", "2 128 8:16 0 8:32 0"),
        ];
        assert_eq!(linear_targets(&table), Err(TableError::Target("striped".into())));
        assert_eq!(linear_targets(&[]), Err(TableError::Empty));
        assert_eq!(
            linear_targets(&[line(8, 4, "linear", "8:16 0")]),
            Err(TableError::Gaps)
        );
        for parameters in [
            "",
            "8:16",
            "8:16 x",
            "8:16 0 more",
            "/dev/sda 0",
            "8:16 18446744073709551615",
        ] {
            assert_eq!(
                linear_targets(&[line(0, 4, "linear", parameters)]),
                Err(TableError::Line(parameters.into()))
            );
        }
    }
}
