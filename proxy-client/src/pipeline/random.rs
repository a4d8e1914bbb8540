//! Random choices: which places prove a LUN, what is audited.

use std::sync::{Mutex, PoisonError};

/// Where random numbers come from.
#[derive(Debug)]
pub struct Random(Option<Mutex<u64>>);

impl Random {
    /// The system's: nobody who could prepare a disk for it can foresee them.
    pub fn of_the_system() -> Self {
        Self(None)
    }

    /// A sequence that is the same for the same seed, so that a run can be repeated.
    pub fn of_a_seed(seed: u64) -> Self {
        Self(Some(Mutex::new(seed)))
    }

    /// A random number below `bound`; 0 where the bound is 0 or there is no randomness to be had.
    pub fn below(&self, bound: u64) -> u64 {
        let Some(seeded) = &self.0 else {
            return random_below(bound);
        };
        let mut state = seeded.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 16).checked_rem(bound).unwrap_or(0)
    }
}

/// A random number of the system below `bound`; 0 where the bound is 0 or there is no randomness to be had.
pub fn random_below(bound: u64) -> u64 {
    getrandom::u64().unwrap_or(0).checked_rem(bound).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_bounds_hold() {
        let numbers = |random: &Random| -> Vec<u64> { (1..200).map(|bound| random.below(bound)).collect() };
        let once = numbers(&Random::of_a_seed(7));
        assert_eq!(once, numbers(&Random::of_a_seed(7)));
        assert_ne!(once, numbers(&Random::of_a_seed(8)));
        for numbers in [once, numbers(&Random::of_the_system())] {
            assert!((1..200).zip(numbers).all(|(bound, number)| number < bound));
        }
        assert_eq!(Random::of_a_seed(1).below(0), 0);
    }
}
