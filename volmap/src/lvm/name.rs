//! Names of logical volumes, as LVM allows them.

use std::fmt;

/// Longest name of a volume group or logical volume (`NAME_LEN` of LVM, without its NUL).
const NAME_MAX: usize = 127;

/// A volume group and a logical volume in it. Holds nothing that could be taken for an option, a pattern or a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LvName {
    group: String,
    volume: String,
}

impl LvName {
    /// `None` for what LVM would not allow as names.
    pub fn new(group: &str, volume: &str) -> Option<Self> {
        (is_name(group) && is_name(volume)).then(|| Self {
            group: group.to_owned(),
            volume: volume.to_owned(),
        })
    }

    /// The volume group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The logical volume in it.
    pub fn volume(&self) -> &str {
        &self.volume
    }
}

impl fmt::Display for LvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.volume)
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
    (1..=NAME_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !matches!(text, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_lvm_allows() {
        for good in ["vg", "a.b-c_d+e", "9", "_x", &"x".repeat(NAME_MAX)] {
            assert!(LvName::new("vg", good).is_some(), "{good}");
            assert!(LvName::new(good, "lv").is_some(), "{good}");
        }
        let long = "x".repeat(NAME_MAX + 1);
        for bad in [
            "", "-f", "a/b", "a b", "@tag", "a\"b", ".", "..", "ü", "a\n", &long,
        ] {
            assert_eq!(LvName::new("vg", bad), None, "{bad}");
            assert_eq!(LvName::new(bad, "lv"), None, "{bad}");
        }
        assert_eq!(LvName::new("vg", "lv").unwrap().to_string(), "vg/lv");
    }
}
