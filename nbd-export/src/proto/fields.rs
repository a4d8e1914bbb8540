//! A cursor over the fields of one received message: every length is checked before it is believed.

use byteorder::{BigEndian, ByteOrder};

use super::error::DecodeError;

/// The unread rest of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// All fields of `message`.
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated {
            wanted: len,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(head)
    }

    /// The next 16 bits.
    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.bytes(2).map(BigEndian::read_u16)
    }

    /// The next 32 bits.
    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.bytes(4).map(BigEndian::read_u32)
    }

    /// The next 64 bits.
    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.bytes(8).map(BigEndian::read_u64)
    }

    /// A 32-bit length and that many bytes.
    pub(super) fn counted(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// The message must end here.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::TrailingBytes(self.rest.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lying_length_is_refused() {
        let mut fields = Fields::of(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert!(matches!(fields.counted(), Err(DecodeError::Truncated { .. })));
    }

    #[test]
    fn trailing_bytes_are_noticed() {
        let mut fields = Fields::of(&[0, 1, 2]);
        assert_eq!(fields.u16(), Ok(1));
        assert_eq!(fields.end(), Err(DecodeError::TrailingBytes(1)));
    }
}
