//! What a frozen export says of itself in NBD_INFO_DESCRIPTION.

use std::time::{Duration, SystemTime};

use volmap::frozen::{CopyAreaUse, Description, Strength};
use volmap::set::HeldBy;
use volmap::store::StoreGraph;

use super::limits::{DISKS_TOLD_BYTES, DISKS_TOLD_MAX};

/// How its host came to freeze an image, beside what the image says of itself.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// Whether a hook had the application bring its data into order before the freeze.
    pub by_application: bool,
    /// The set that it was frozen with.
    pub set: Option<SetMembership>,
}

/// A frozen image's part in the freeze of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetMembership {
    /// The frozen set: `SET@ID`, or `SET` for the one made at start.
    pub name: String,
    /// Frozen images in it.
    pub members: usize,
    /// For how long writers were held up.
    pub window: Duration,
    /// What held the volume still.
    pub held_by: HeldBy,
}

impl Circumstances {
    /// What the bytes are good for, all things considered.
    pub fn strength(&self, about: &Description) -> Strength {
        if self.by_application {
            about.strength.max(Strength::Application)
        } else {
            about.strength
        }
    }
}

/// The machine-readable description of a frozen export (docs/x-volmap.md, "Description").
pub(super) fn describe(
    about: &Description,
    circumstances: &Circumstances,
    copy_area: Option<CopyAreaUse>,
    left_out: Option<u64>,
    graph: &StoreGraph,
) -> String {
    let mut text = format!(
        "frozen image: method={} strength={} stability={} attestation={} frozen-at={}",
        about.method,
        words::strength(circumstances.strength(about)),
        words::stability(about.stability),
        words::attestation(about.attestation),
        rfc3339(about.frozen_at)
    );
    if let Some(set) = &circumstances.set {
        let held_by = words::held_by(set.held_by);
        text.push_str(&format!(" {} held-by={held_by}", of_set(set)));
    }
    if let Some(CopyAreaUse { used, size, growth }) = copy_area {
        text.push_str(&format!(" copy-area={used}/{size} copy-area-growth={growth}"));
    }
    if let Some(bytes) = left_out {
        text.push_str(&format!(" free-space-left-out={bytes}"));
    }
    text.push_str(&disks(graph));
    text
}

/// A word for each disk. An identity is percent-encoded, and so holds neither spaces nor slashes.
fn disks(graph: &StoreGraph) -> String {
    let mut words = String::new();
    for disk in graph.disks().take(DISKS_TOLD_MAX) {
        let mut word = format!(" disk={}/{}", disk.identity, disk.size);
        if let Some(block) = disk.block_size {
            word.push_str(&format!("/{block}"));
        }
        if words.len() + word.len() > DISKS_TOLD_BYTES {
            break;
        }
        words.push_str(&word);
    }
    words
}

/// The same of a frozen set as a whole.
pub(super) fn describe_set(set: &SetMembership) -> String {
    format!("frozen set: {}", of_set(set))
}

fn of_set(set: &SetMembership) -> String {
    format!(
        "set={} set-members={} set-window-ms={}",
        set.name,
        set.members,
        set.window.as_millis()
    )
}

/// The words for what is told of a frozen image, everywhere.
pub(crate) mod words {
    use volmap::frozen::{Attestation, Stability, Strength};
    use volmap::set::HeldBy;

    /// What the bytes are good for.
    pub(crate) fn strength(strength: Strength) -> &'static str {
        match strength {
            Strength::CrashConsistent => "crash-consistent",
            Strength::FileSystem => "file-system",
            Strength::Quiesced => "quiesced",
            Strength::Application => "application",
        }
    }

    /// What held a volume of a set still.
    pub(crate) fn held_by(held_by: HeldBy) -> &'static str {
        match held_by {
            HeldBy::Alone => "alone",
            HeldBy::Lease => "lease",
            HeldBy::FileSystem => "file-system",
            HeldBy::ReadOnly => "read-only",
            HeldBy::Agent => "agent",
            HeldBy::Hook => "hook",
            HeldBy::Operator => "operator",
        }
    }

    /// How stable the mapping is.
    pub(crate) fn stability(stability: Stability) -> &'static str {
        match stability {
            Stability::Pinned => "pinned",
            Stability::Moves => "moves",
            Stability::Opaque => "opaque",
        }
    }

    /// Who vouches for it.
    pub(crate) fn attestation(attestation: Attestation) -> &'static str {
        match attestation {
            Attestation::Witnessed => "witnessed",
            Attestation::Unattested => "unattested",
        }
    }
}

/// `2026-11-22T00:00:00Z`; the epoch for instants before it.
fn rfc3339(at: SystemTime) -> String {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let rest = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The date of a day counted from 1970-01-01, in the proleptic Gregorian calendar: years of 400-year eras that begin in
/// March, so that the leap day is the last day of a year.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let shifted = days + DAYS_TO_EPOCH;
    let (era, day_of_era) = (shifted / DAYS_PER_ERA, shifted % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, block_size: Option<u32>) -> volmap::store::Store {
        volmap::store::Store {
            kind: volmap::store::StoreKind::Disk,
            identity: volmap::identity::Identity::new("serial", name).unwrap(),
            label: name.into(),
            size: 1 << 30,
            block_size,
            below: volmap::store::Below::Disk,
        }
    }

    #[test]
    fn a_disk_is_told_with_its_size_and_its_block_size() {
        let mut graph = StoreGraph::new();
        graph.add(disk("a b/c", Some(512)));
        graph.add(disk("file", None));
        assert_eq!(
            disks(&graph),
            " disk=serial:a%20b%2Fc/1073741824/512 disk=serial:file/1073741824"
        );
    }

    #[test]
    fn what_is_told_of_disks_is_bounded_in_number_and_in_length() {
        let told = |names: &dyn Fn(usize) -> String, number: usize| {
            let mut graph = StoreGraph::new();
            for nth in 0..number {
                graph.add(disk(&names(nth), None));
            }
            let words = disks(&graph);
            assert!(words.len() <= DISKS_TOLD_BYTES, "{}", words.len());
            words.split_ascii_whitespace().count()
        };
        let short = |nth| format!("{nth}");
        for (number, wanted) in [
            (DISKS_TOLD_MAX - 1, DISKS_TOLD_MAX - 1),
            (DISKS_TOLD_MAX, DISKS_TOLD_MAX),
            (DISKS_TOLD_MAX + 1, DISKS_TOLD_MAX),
        ] {
            assert_eq!(told(&short, number), wanted);
        }
        // Words of 255 bytes each: as many as fit, and none that is cut.
        let long = |nth| format!("{nth:0231}");
        let fit = DISKS_TOLD_BYTES / 255;
        assert_eq!(" disk=serial:/1073741824".len() + 231, 255);
        assert_eq!(told(&long, fit), fit);
        assert_eq!(told(&long, fit + 1), fit);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_305_600, "2026-11-22T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(
                rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
                text
            );
        }
    }
}
