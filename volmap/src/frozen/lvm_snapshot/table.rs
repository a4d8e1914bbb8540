//! What the kernel says of a snapshot device: its table and its status.

use super::exception_store::Geometry;
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::{TargetLine, TargetStatus};

/// The type of the target.
const TARGET: &str = "snapshot";

/// The table of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SnapshotTable {
    /// What the origin's bytes lie on (LVM's `-real` device).
    pub(super) origin: DeviceNumber,
    /// The exception store (LVM's `-cow` device).
    pub(super) store: DeviceNumber,
    /// Of the store.
    pub(super) geometry: Geometry,
}

impl SnapshotTable {
    /// `ORIGIN STORE P|PO CHUNK`: one target for the whole device, with a persistent store and no options.
    pub(super) fn parse(table: &[TargetLine]) -> Option<Self> {
        let [line] = table else {
            return None;
        };
        let mut words = line.parameters.split_whitespace();
        let origin = DeviceNumber::parse(words.next()?)?;
        let store = DeviceNumber::parse(words.next()?)?;
        let persistent = matches!(words.next()?, "P" | "PO");
        let geometry = Geometry::new(words.next()?.parse().ok()?)?;
        let plain = words.next().is_none();
        (line.kind == TARGET && line.start == 0 && persistent && plain).then_some(Self {
            origin,
            store,
            geometry,
        })
    }
}

/// What the status of a live snapshot says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Sample {
    /// It is good; so many sectors of the store are allocated, for copies that are in its log and for those under way.
    Allocated(u64),
    /// It is none any more, and why.
    Lost(String),
}

impl Sample {
    /// `ALLOCATED/TOTAL METADATA` of a device that is still a read-only snapshot; everything else is the end of it.
    pub(super) fn of(status: &TargetStatus) -> Self {
        let [line] = &status.targets[..] else {
            return Self::Lost("its device has no snapshot's table any more".to_owned());
        };
        if line.kind != TARGET {
            return Self::Lost(format!(
                "its device is a '{}' now, and no snapshot any more",
                line.kind
            ));
        }
        if !status.read_only {
            return Self::Lost("the snapshot is not read-only any more".to_owned());
        }
        match allocated(&line.parameters) {
            Some(allocated) => Self::Allocated(allocated),
            None => Self::Lost(format!(
                "the snapshot is lost ({}): {}",
                line.parameters,
                why(&line.parameters)
            )),
        }
    }
}

fn allocated(status: &str) -> Option<u64> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (used, metadata) = status.trim_end().split_once(' ')?;
    let (allocated, total) = used.split_once('/')?;
    let (allocated, total) = (number(allocated)?, number(total)?);
    number(metadata)?;
    (allocated <= total).then_some(allocated)
}

fn why(status: &str) -> &'static str {
    match status.trim_end() {
        "Invalid" => "its copy area was too small for what was overwritten, or failed (--snapshot-size)",
        "Overflow" => "its copy area is full (--snapshot-size)",
        _ => "its status is no count of copies",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, parameters: &str) -> TargetLine {
        TargetLine {
            start: 0,
            sectors: 2048,
            kind: kind.into(),
            parameters: parameters.into(),
        }
    }

    #[test]
    fn a_table_is_read_and_every_other_refused() {
        let table = SnapshotTable::parse(&[line("snapshot", "253:2 253:3 P 128")]).unwrap();
        assert_eq!(table.origin, DeviceNumber { major: 253, minor: 2 });
        assert_eq!(table.store, DeviceNumber { major: 253, minor: 3 });
        assert_eq!(table.geometry.chunk(), 65_536);
        assert!(SnapshotTable::parse(&[line("snapshot", "253:2 253:3 PO 8")]).is_some());
        for (kind, parameters) in [
            ("snapshot", "253:2 253:3 N 128"),
            ("snapshot", "253:2 253:3 P 128 1 discard_zeroes_cow"),
            ("snapshot", "253:2 253:3 P 100"),
            ("snapshot", "253:2 253:3 P 4"),
            ("snapshot", "253:2 253:3 P"),
            ("snapshot", "/dev/a 253:3 P 128"),
            ("snapshot-merge", "253:2 253:3 P 128"),
            ("linear", "253:2 0"),
        ] {
            assert_eq!(
                SnapshotTable::parse(&[line(kind, parameters)]),
                None,
                "{kind} {parameters}"
            );
        }
        let two = [
            line("snapshot", "253:2 253:3 P 128"),
            line("snapshot", "253:2 253:3 P 128"),
        ];
        assert_eq!(SnapshotTable::parse(&two), None);
        assert_eq!(SnapshotTable::parse(&[]), None);
    }

    fn sample(kind: &str, parameters: &str, read_only: bool) -> Sample {
        Sample::of(&TargetStatus {
            read_only,
            suspended: false,
            targets: vec![line(kind, parameters)],
        })
    }

    #[test]
    fn only_a_count_is_good() {
        assert_eq!(sample("snapshot", "256/32768 256", true), Sample::Allocated(256));
        for lost in [
            "Invalid",
            "Overflow",
            "Merge failed",
            "Unknown",
            "",
            "256",
            "256/32768",
            "/32768 256",
            "-1/32768 256",
            "+256/32768 256",
            "256/255 256",
            "256/32768 x",
            "99999999999999999999/99999999999999999999 1",
        ] {
            assert!(
                matches!(sample("snapshot", lost, true), Sample::Lost(_)),
                "{lost}"
            );
        }
        assert!(matches!(
            sample("snapshot-merge", "256/32768 256", true),
            Sample::Lost(_)
        ));
        assert!(matches!(sample("error", "", true), Sample::Lost(_)));
        assert!(matches!(
            sample("snapshot", "256/32768 256", false),
            Sample::Lost(_)
        ));
    }
}
