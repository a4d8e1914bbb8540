//! What waits to be sent: request headers that were encoded, and data that are sent from where they are.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Bytes in the order of sending.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Behind the pieces.
    heads: BytesMut,
}

impl Outbox {
    /// Where headers are appended.
    pub(super) fn heads(&mut self) -> &mut BytesMut {
        &mut self.heads
    }

    /// Appends data without copying them.
    pub(super) fn push(&mut self, data: Bytes) {
        if !self.heads.is_empty() {
            self.pieces.push_back(self.heads.split().freeze());
        }
        self.pieces.push_back(data);
    }

    /// Whether everything is sent.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_remaining()
    }
}

impl Buf for Outbox {
    fn remaining(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum::<usize>() + self.heads.len()
    }

    fn has_remaining(&self) -> bool {
        !self.pieces.is_empty() || !self.heads.is_empty()
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&self.heads, |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let all = self
            .pieces
            .iter()
            .map(|piece| &piece[..])
            .chain([&self.heads[..]]);
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(all.filter(|bytes| !bytes.is_empty())) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.pieces.front_mut() {
            let part = first.len().min(count);
            first.advance(part);
            count -= part;
            if !first.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.heads.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_however_it_is_sent() {
        for step in 1..12 {
            let mut outbox = Outbox::default();
            outbox.heads().extend_from_slice(b"ab");
            outbox.push(Bytes::from_static(b"cde"));
            outbox.push(Bytes::from_static(b"fg"));
            outbox.heads().extend_from_slice(b"hij");
            let mut sent = Vec::new();
            while outbox.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 8];
                let count = outbox.chunks_vectored(&mut slices);
                let bytes: Vec<u8> = slices[..count]
                    .iter()
                    .flat_map(|s| s.to_vec())
                    .take(step)
                    .collect();
                sent.extend_from_slice(&bytes);
                outbox.advance(bytes.len());
            }
            assert_eq!(sent, b"abcdefghij", "{step}");
        }
    }
}
