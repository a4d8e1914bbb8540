//! Who goes on at every point of a run: all possibilities one after the other, or drawn ones.

/// Gives the choices of one run.
pub(super) trait Chooser: Send {
    /// A number below `n`.
    fn choose(&mut self, n: usize) -> usize;
}

/// All runs, depth first: each run repeats the choices of the one before up to the last that had another possibility left.
#[derive(Default)]
pub(super) struct Exhaustive {
    path: Vec<(usize, usize)>,
    at: usize,
}

impl Chooser for Exhaustive {
    fn choose(&mut self, n: usize) -> usize {
        if self.at == self.path.len() {
            self.path.push((0, n));
        }
        let (choice, width) = self.path[self.at];
        assert_eq!(width, n, "a run depends on its choices only");
        self.at += 1;
        choice
    }
}

impl Exhaustive {
    /// Prepares the next run; `false` when there is none left.
    pub(super) fn next_run(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, width)) = self.path.pop() {
            if choice + 1 < width {
                self.path.push((choice + 1, width));
                return true;
            }
        }
        false
    }
}

/// Drawn choices, the same for the same seed.
pub(super) struct Drawn(pub(super) u64);

impl Chooser for Drawn {
    fn choose(&mut self, n: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % n
    }
}

/// Nobody but the observer goes on.
pub(super) struct Nobody;

impl Chooser for Nobody {
    fn choose(&mut self, _: usize) -> usize {
        0
    }
}
