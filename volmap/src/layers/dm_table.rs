//! Device-mapper tables: which devices lie under a device, and how.

mod mirror;
mod multipath;
mod refusal;

use std::io;
use std::str::SplitWhitespace;

use super::sysfs::SECTOR;
use crate::range::ByteRange;
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::{Control, DeviceStatus, TargetLine, TargetStatus};

pub(super) use mirror::Mirror;
use refusal::advice;

/// Whoever knows device-mapper tables: the kernel.
pub(super) trait DeviceMapper: Send + Sync + std::fmt::Debug {
    /// Name, UUID and event number.
    fn device_status(&self, device: DeviceNumber) -> io::Result<DeviceStatus>;
    /// The live table.
    fn table(&self, device: DeviceNumber) -> io::Result<Vec<TargetLine>>;
    /// What its targets say of themselves now.
    fn target_status(&self, device: DeviceNumber) -> io::Result<TargetStatus>;
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

    fn target_status(&self, device: DeviceNumber) -> io::Result<TargetStatus> {
        self.target_status(device)
    }

    fn events_since_armed(&self) -> io::Result<bool> {
        self.events_since_armed()
    }
}

/// A place on a lower device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leg {
    /// The device below.
    pub(super) device: DeviceNumber,
    /// Byte offset there.
    pub(super) offset: u64,
}

/// How the bytes of a target lie on the devices below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    /// Dealt out in chunks of so many bytes; a `linear` target is one with a single column.
    Striped {
        /// Bytes.
        chunk: u64,
        /// The columns in order.
        columns: Vec<Leg>,
    },
    /// The same bytes several times.
    Mirror(Mirror),
    /// One disk by several paths.
    Multipath {
        /// All paths, those that failed too.
        paths: Vec<DeviceNumber>,
    },
}

/// A line of a table that was understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    /// Bytes of the device.
    pub(super) range: ByteRange,
    /// Where they lie.
    pub(super) layout: Layout,
}

/// Why a table is not followed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("its device-mapper target is '{kind}': {advice}", kind = .0, advice = advice(.0))]
    Target(String),
    #[error("its device-mapper table has a line that cannot be read: '{0}'")]
    Line(String),
    #[error("its mirror may hold other bytes on one leg than on another: {0}")]
    Mirror(&'static str),
    #[error("its device-mapper table has gaps or overlaps")]
    Gaps,
    #[error("it has no live device-mapper table")]
    Empty,
}

/// The targets of a table, in order, without gaps.
pub(super) fn targets(table: &[TargetLine]) -> Result<Vec<Target>, TableError> {
    if table.is_empty() {
        return Err(TableError::Empty);
    }
    let mut covered = 0;
    table
        .iter()
        .map(|line| {
            let target = target(line)?;
            if target.range.start() != covered {
                return Err(TableError::Gaps);
            }
            covered = target.range.end();
            Ok(target)
        })
        .collect()
}

fn target(line: &TargetLine) -> Result<Target, TableError> {
    let unreadable = || TableError::Line(line.parameters.clone());
    let mut words = Words(line.parameters.split_whitespace());
    let layout = match line.kind.as_str() {
        "linear" => linear(&mut words, line),
        "striped" => striped(&mut words),
        "multipath" => multipath::paths(&mut words).map(|paths| Layout::Multipath { paths }),
        "mirror" => mirror::of_mirror(&mut words)?.map(Layout::Mirror),
        "raid" => mirror::of_raid(&mut words)?.map(Layout::Mirror),
        other => return Err(TableError::Target(other.to_owned())),
    };
    let range = bytes(line.start).zip(bytes(line.sectors));
    let range = range.and_then(|(start, len)| ByteRange::new(start, len));
    match (layout, range) {
        (Some(layout), Some(range)) if words.0.next().is_none() => Ok(Target { range, layout }),
        _ => Err(unreadable()),
    }
}

/// `MAJOR:MINOR OFFSET`, in sectors.
fn linear(words: &mut Words<'_>, line: &TargetLine) -> Option<Layout> {
    Some(Layout::Striped {
        chunk: bytes(line.sectors)?,
        columns: vec![words.leg()?],
    })
}

/// `COUNT CHUNK`, and a leg for each column, in sectors.
fn striped(words: &mut Words<'_>) -> Option<Layout> {
    let count = words.number()?;
    let chunk = words.bytes()?;
    let columns = (0..count).map(|_| words.leg()).collect::<Option<Vec<_>>>()?;
    (!columns.is_empty()).then_some(Layout::Striped { chunk, columns })
}

/// Bytes in so many sectors.
fn bytes(sectors: u64) -> Option<u64> {
    sectors.checked_mul(SECTOR)
}

/// The parameters of a line.
struct Words<'a>(SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn number(&mut self) -> Option<u64> {
        self.word()?.parse().ok()
    }

    /// A number of sectors, in bytes.
    fn bytes(&mut self) -> Option<u64> {
        bytes(self.number()?)
    }

    fn device(&mut self) -> Option<DeviceNumber> {
        DeviceNumber::parse(self.word()?)
    }

    fn leg(&mut self) -> Option<Leg> {
        let (device, offset) = (self.device()?, self.bytes()?);
        Some(Leg { device, offset })
    }

    /// A count, and so many words behind it.
    fn counted(&mut self) -> Option<Vec<&'a str>> {
        let count = self.number()?;
        (0..count).map(|_| self.word()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn line(start: u64, sectors: u64, kind: &str, parameters: &str) -> TargetLine {
        TargetLine {
            start,
            sectors,
            kind: kind.into(),
            parameters: parameters.into(),
        }
    }

    fn leg(major: u32, minor: u32, offset: u64) -> Leg {
        let device = DeviceNumber { major, minor };
        Leg { device, offset }
    }

    #[test]
    fn linear_and_striped_targets_follow_each_other() {
        let table = [
            line(0, 8, "linear", "8:16 2048"),
            line(8, 512, "striped", "2 128 8:16 0 259:1 8"),
        ];
        let expected = [
            Target {
                range: ByteRange::new(0, 4096).unwrap(),
                layout: Layout::Striped {
                    chunk: 4096,
                    columns: vec![leg(8, 16, 2048 * 512)],
                },
            },
            Target {
                range: ByteRange::new(4096, 512 * 512).unwrap(),
                layout: Layout::Striped {
                    chunk: 65536,
                    columns: vec![leg(8, 16, 0), leg(259, 1, 4096)],
                },
            },
        ];
        assert_eq!(targets(&table).unwrap(), expected);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name_and_with_advice() {
        for kind in [
            "crypt",
            "snapshot-origin",
            "snapshot",
            "thin",
            "cache",
            "era",
            "delay",
            "some-new-one",
        ] {
            let table = [line(0, 8, "linear", "8:16 2048"), line(8, 4, kind, "8:16 0")];
            let refused = targets(&table).unwrap_err();
            assert_eq!(refused, TableError::Target(kind.into()));
            assert!(refused.to_string().contains(&format!("'{kind}': ")), "{refused}");
        }
        assert!(advice("crypt").contains("ciphertext"));
        assert!(advice("snapshot-origin").contains("live"));
        assert_eq!(targets(&[]), Err(TableError::Empty));
        assert_eq!(targets(&[line(8, 4, "linear", "8:16 0")]), Err(TableError::Gaps));
    }

    #[test]
    fn lines_that_cannot_be_read_are_refused() {
        let cases = [
            ("linear", ""),
            ("linear", "8:16"),
            ("linear", "8:16 x"),
            ("linear", "8:16 0 more"),
            ("linear", "/dev/sda 0"),
            ("linear", "8:16 18446744073709551615"),
            ("striped", "2 128 8:16 0"),
            ("striped", "1 128 8:16 0 8:32 0"),
            ("striped", "0 128"),
            ("striped", "18446744073709551615 128 8:16 0"),
            ("striped", "2 36028797018963968 8:16 0 8:32 0"),
            ("striped", "2 128 8:16 0 8:32"),
            ("multipath", "0 0 1 1 service-time 0 1 2 8:16 1"),
            ("mirror", "core 1 1024 2 8:16 0"),
            ("raid", "raid1 3 0 region_size 1024 2 - 8:16 -"),
        ];
        for (kind, parameters) in cases {
            let refused = targets(&[line(0, 4, kind, parameters)]);
            assert_eq!(
                refused,
                Err(TableError::Line(parameters.into())),
                "{kind} {parameters}"
            );
        }
    }
}
