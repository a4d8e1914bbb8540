//! Generations: 64-bit stamps of mappings that are never used twice.

use std::fmt;
use std::sync::Mutex;

/// Bits of the counter below the incarnation (docs/x-volmap.md, "Generations").
const COUNTER_BITS: u32 = 24;
const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;
const INCARNATION_MAX: u64 = (1 << 40) - 1;

/// The stamp of a mapping. 0 is [`Generation::NEVER_DIRECT`]; every other value is a 40-bit incarnation above a
/// 24-bit counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// The extent has no location that could be read directly.
    pub const NEVER_DIRECT: Self = Self(0);

    /// The value as it travels.
    pub fn to_wire(self) -> u64 {
        self.0
    }

    /// A value as it travelled.
    pub fn from_wire(value: u64) -> Self {
        Self(value)
    }

    /// Whether extents of this generation may be read directly.
    pub fn is_direct(self) -> bool {
        self != Self::NEVER_DIRECT
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.0 >> COUNTER_BITS, self.0 & COUNTER_MAX)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The one source of generations of a host agent: law H3 holds because nothing else makes them.
#[derive(Debug)]
pub struct GenerationClock {
    last: Mutex<u64>,
}

impl GenerationClock {
    /// A clock of a fresh incarnation, drawn at random: 40 bits that no earlier start of any agent is expected to
    /// have drawn.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub fn start() -> std::io::Result<Self> {
        Ok(Self {
            last: Mutex::new(draw_incarnation(0)? << COUNTER_BITS),
        })
    }

    /// The next generation: not equal to any that this clock gave before.
    ///
    /// # Panics
    /// The counter is exhausted and the system has no random numbers: going on would break law H3.
    pub fn next(&self) -> Generation {
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *last = if *last & COUNTER_MAX == COUNTER_MAX {
            let incarnation =
                draw_incarnation(*last >> COUNTER_BITS).expect("random numbers for an incarnation");
            incarnation << COUNTER_BITS | 1
        } else {
            *last + 1
        };
        Generation(*last)
    }
}

/// A random incarnation that is neither 0 (it would make generation 0 possible) nor `previous`.
fn draw_incarnation(previous: u64) -> std::io::Result<u64> {
    loop {
        let drawn = getrandom::u64().map_err(std::io::Error::other)? & INCARNATION_MAX;
        if drawn != 0 && drawn != previous {
            return Ok(drawn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_rise_within_an_incarnation() {
        let clock = GenerationClock::start().unwrap();
        let (a, b) = (clock.next(), clock.next());
        assert!(a.is_direct() && b > a);
        assert_eq!(a.to_wire() >> COUNTER_BITS, b.to_wire() >> COUNTER_BITS);
    }

    #[test]
    fn overflow_of_the_counter_draws_a_new_incarnation() {
        let clock = GenerationClock {
            last: Mutex::new(7 << COUNTER_BITS | (COUNTER_MAX - 1)),
        };
        assert_eq!(clock.next(), Generation(7 << COUNTER_BITS | COUNTER_MAX));
        let next = clock.next();
        assert_ne!(next.to_wire() >> COUNTER_BITS, 7);
        assert_eq!(next.to_wire() & COUNTER_MAX, 1);
    }

    #[test]
    fn starts_do_not_share_an_incarnation() {
        let (a, b) = (
            GenerationClock::start().unwrap(),
            GenerationClock::start().unwrap(),
        );
        assert_ne!(a.next(), b.next());
    }
}
