//! What the status of an extent means in the contexts that we know.

use std::borrow::Cow;

/// `x-volmap:disk:*` and `x-volmap:store:*`: the bytes lie there, at the address in the bits below (docs/x-volmap.md).
const PLACED: u64 = 1 << 63;

/// What a context's statuses are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// `base:allocation`.
    Allocation,
    /// `qemu:dirty-bitmap:*`.
    Dirty,
    /// `qemu:allocation-depth`.
    Depth,
    /// `x-volmap:generation`.
    Generation,
    /// `x-volmap:disk:*` and `x-volmap:store:*`.
    Place,
    /// `x-volmap:changed:*`.
    Changed,
    /// Anything else.
    Unknown,
}

impl Meaning {
    pub(super) fn of(context: &str) -> Self {
        match context {
            "base:allocation" => Self::Allocation,
            "qemu:allocation-depth" => Self::Depth,
            "x-volmap:generation" => Self::Generation,
            _ if context.starts_with("qemu:dirty-bitmap:") => Self::Dirty,
            _ if context.starts_with("x-volmap:disk:") || context.starts_with("x-volmap:store:") => {
                Self::Place
            }
            _ if context.starts_with("x-volmap:changed:") => Self::Changed,
            _ => Self::Unknown,
        }
    }

    /// A status in words; empty where nothing is known of it.
    pub(super) fn describe(self, status: u64) -> Cow<'static, str> {
        match (self, status) {
            (Self::Allocation, 0) => "data".into(),
            (Self::Allocation, 1) => "hole".into(),
            (Self::Allocation, 2) => "zero".into(),
            (Self::Allocation, 3) => "hole,zero".into(),
            (Self::Dirty, 0) => "clean".into(),
            (Self::Dirty, 1) => "dirty".into(),
            (Self::Depth, 0) => "unallocated".into(),
            (Self::Depth, 1) => "local".into(),
            (Self::Depth, depth) => format!("backing depth {depth}").into(),
            (Self::Generation, 0) => "never direct".into(),
            (Self::Place, 0) => "elsewhere".into(),
            (Self::Place, address) if address & PLACED != 0 => format!("at {}", address & !PLACED).into(),
            (Self::Changed, 0) => "same".into(),
            (Self::Changed, 1) => "changed".into(),
            _ => "".into(),
        }
    }

    /// Whether an extent goes on in its neighbour, which begins `length` bytes behind it.
    pub(super) fn goes_on(self, status: u64, length: u64, next: u64) -> bool {
        match self {
            // An address belongs to the first byte.
            Self::Place if status & PLACED != 0 => status.checked_add(length) == Some(next),
            _ => status == next,
        }
    }

    /// What extents are summed up under.
    pub(super) fn class(self, status: u64) -> u64 {
        match self {
            Self::Place => status & PLACED,
            _ => status,
        }
    }

    /// A class in words.
    pub(super) fn describe_class(self, class: u64) -> Cow<'static, str> {
        match (self, class) {
            (Self::Place, PLACED) => "here".into(),
            _ => self.describe(class),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_only_where_they_continue() {
        let place = Meaning::of("x-volmap:disk:naa:50");
        assert!(place.goes_on(PLACED | 100, 10, PLACED | 110));
        assert!(!place.goes_on(PLACED | 100, 10, PLACED | 100));
        assert!(!place.goes_on(PLACED | 100, 10, 0));
        assert!(place.goes_on(0, 10, 0));
        assert_eq!(place.describe(PLACED | 4096), "at 4096");
        assert!(Meaning::of("base:allocation").goes_on(3, 10, 3));
    }
}
