//! The five flag fields of the protocol.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

macro_rules! flag_set {
    ($(#[$meta:meta])* $name:ident($repr:ty) { $($(#[$flag_meta:meta])* $flag:ident = $bit:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name($repr);

        impl $name {
            /// No flag at all.
            pub const NONE: Self = Self(0);
            $($(#[$flag_meta])* pub const $flag: Self = Self(1 << $bit);)*

            /// The field as it travelled, unknown bits included.
            pub const fn from_wire(bits: $repr) -> Self {
                Self(bits)
            }

            /// The field as it travels.
            pub const fn to_wire(self) -> $repr {
                self.0
            }

            /// Whether every flag of `other` is set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// These flags except those of `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// These flags and those of `other`.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.with(other)
            }
        }

        impl BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                self.0 |= other.0;
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut rest = *self;
                let mut separator = "";
                $(if self.contains(Self::$flag) {
                    write!(f, "{separator}{}", stringify!($flag))?;
                    separator = "|";
                    rest = rest.without(Self::$flag);
                })*
                if rest != Self::NONE || separator.is_empty() {
                    write!(f, "{separator}{:#x}", rest.0)?;
                }
                Ok(())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

flag_set! {
    /// What a server says in its greeting.
    HandshakeFlags(u16) {
        /// Options other than EXPORT_NAME may be sent.
        FIXED_NEWSTYLE = 0,
        /// The 124 zeroes can be left out.
        NO_ZEROES = 1,
    }
}

flag_set! {
    /// What a client answers to the greeting.
    ClientFlags(u32) {
        /// The client speaks fixed newstyle.
        FIXED_NEWSTYLE = 0,
        /// Leave out the 124 zeroes.
        NO_ZEROES = 1,
    }
}

flag_set! {
    /// What an export can do.
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0,
        /// Writing commands fail with EPERM.
        READ_ONLY = 1,
        /// FLUSH may be sent.
        SEND_FLUSH = 2,
        /// FUA may be set.
        SEND_FUA = 3,
        /// A medium that turns.
        ROTATIONAL = 4,
        /// TRIM may be sent.
        SEND_TRIM = 5,
        /// WRITE_ZEROES and NO_HOLE may be sent.
        SEND_WRITE_ZEROES = 6,
        /// DF may be set; never without structured replies or extended headers.
        SEND_DF = 7,
        /// Flush and FUA hold over all connections.
        CAN_MULTI_CONN = 8,
        /// Experimental, never set by us.
        SEND_RESIZE = 9,
        /// CACHE may be sent.
        SEND_CACHE = 10,
        /// FAST_ZERO may be set.
        SEND_FAST_ZERO = 11,
        /// BLOCK_STATUS may carry a filter; never without extended headers.
        BLOCK_STATUS_PAYLOAD = 12,
    }
}

flag_set! {
    /// What a request wants beside its command.
    CommandFlags(u16) {
        /// Reply only when what was written is durable.
        FUA = 0,
        /// WRITE_ZEROES must allocate.
        NO_HOLE = 1,
        /// READ in one content chunk at most.
        DF = 2,
        /// BLOCK_STATUS of one extent a context.
        REQ_ONE = 3,
        /// WRITE_ZEROES must be fast, or fail at once.
        FAST_ZERO = 4,
        /// The length is that of a payload behind the header (extended headers only).
        PAYLOAD_LEN = 5,
    }
}

flag_set! {
    /// Flags of a structured or extended chunk.
    ReplyFlags(u16) {
        /// No chunk of this reply follows.
        DONE = 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_their_names_and_the_rest() {
        let flags = CommandFlags::FUA | CommandFlags::from_wire(0x8000);
        assert_eq!(flags.to_string(), "FUA|0x8000");
        assert_eq!(ReplyFlags::NONE.to_string(), "0x0");
        assert_eq!(flags.without(CommandFlags::FUA).to_wire(), 0x8000);
    }

    #[test]
    fn bits_are_those_of_the_specification() {
        assert_eq!(TransmissionFlags::BLOCK_STATUS_PAYLOAD.to_wire(), 1 << 12);
        assert_eq!(TransmissionFlags::CAN_MULTI_CONN.to_wire(), 1 << 8);
        assert_eq!(CommandFlags::PAYLOAD_LEN.to_wire(), 1 << 5);
    }
}
