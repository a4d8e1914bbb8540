//! The input as a script: small choices, and numbers from where mistakes are made.

use crate::proto::{ContextId, ContextName, HeaderStyle, SelectedContext};

/// Size of the export that numbers lie around.
pub(super) const SIZE: u64 = 1 << 40;

/// What is left of an input.
pub(super) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(super) fn of(input: &'a [u8]) -> Self {
        Self(input)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// One byte; 0 behind the end.
    pub(super) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// One of `count` things.
    pub(super) fn choice(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    pub(super) fn chance(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(super) fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub(super) fn long(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// Up to `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// A number close to one at which something ends.
    pub(super) fn number(&mut self) -> u64 {
        let edge = match self.choice(12) {
            0..=2 => 0,
            3 => 512,
            4 => 4096,
            5 => 32 << 20,
            6 => u64::from(u32::MAX),
            7 => 1 << 32,
            8 => SIZE,
            9 => 1 << 63,
            10 => u64::MAX,
            _ => return self.long(),
        };
        let off = i8::from_be_bytes([self.byte()]);
        edge.wrapping_add_signed(off.into())
    }

    pub(super) fn style(&mut self) -> HeaderStyle {
        [
            HeaderStyle::Simple,
            HeaderStyle::Structured,
            HeaderStyle::Extended,
        ][self.choice(3)]
    }
}

/// The contexts that a session without a handshake has selected.
pub(super) fn selected(style: HeaderStyle) -> Vec<SelectedContext> {
    if style == HeaderStyle::Simple {
        return Vec::new();
    }
    [(5, "base:allocation"), (6, "x-volmap:generation")]
        .into_iter()
        .map(|(id, name)| SelectedContext {
            id: ContextId(id),
            name: ContextName::new(name).expect("a name"),
        })
        .collect()
}
