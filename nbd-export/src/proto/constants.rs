//! Magic numbers and codes, as the NBD specification numbers them ("Values", "Reserved Magic values").

use std::fmt;

/// `NBDMAGIC`: the first eight bytes that any server sends.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: the second eight bytes of a newstyle server, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second eight bytes of an oldstyle server.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The start of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The start of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// The start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// The start of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The port that IANA gave to NBD.
pub const DEFAULT_PORT: u16 = 10809;
/// Zeroes after the answer to `NBD_OPT_EXPORT_NAME`, unless both sides set their no-zeroes flag.
pub const EXPORT_NAME_ZEROES: usize = 124;

macro_rules! wire_codes {
    ($(#[$meta:meta])* $name:ident($repr:ty) { $($(#[$code_meta:meta])* $code:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub $repr);

        impl $name {
            $($(#[$code_meta])* pub const $code: Self = Self($value);)*
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$code => f.write_str(stringify!($code)),)*
                    Self(other) => write!(f, "{other}"),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

wire_codes! {
    /// What a client asks for during the handshake (`NBD_OPT_*`).
    OptionCode(u32) {
        /// Enter transmission; no error can be told.
        EXPORT_NAME = 1,
        /// End the session politely.
        ABORT = 2,
        /// List the exports.
        LIST = 3,
        /// Withdrawn from the specification.
        PEEK_EXPORT = 4,
        /// Upgrade to TLS.
        STARTTLS = 5,
        /// Describe an export.
        INFO = 6,
        /// Describe an export and enter transmission.
        GO = 7,
        /// Use structured replies.
        STRUCTURED_REPLY = 8,
        /// List metadata contexts.
        LIST_META_CONTEXT = 9,
        /// Select metadata contexts.
        SET_META_CONTEXT = 10,
        /// Use extended headers.
        EXTENDED_HEADERS = 11,
    }
}

wire_codes! {
    /// How a server answers an option (`NBD_REP_*`). Errors have bit 31 set.
    OptionReplyCode(u32) {
        /// The option succeeded; nothing follows.
        ACK = 1,
        /// One export of a list.
        SERVER = 2,
        /// One piece of information on an export.
        INFO = 3,
        /// One metadata context.
        META_CONTEXT = 4,
        /// The option is not known.
        ERR_UNSUP = 1 << 31 | 1,
        /// The server's policy forbids it.
        ERR_POLICY = 1 << 31 | 2,
        /// The option is malformed, or makes no sense here.
        ERR_INVALID = 1 << 31 | 3,
        /// The server's platform cannot do it.
        ERR_PLATFORM = 1 << 31 | 4,
        /// TLS first.
        ERR_TLS_REQD = 1 << 31 | 5,
        /// No such export.
        ERR_UNKNOWN = 1 << 31 | 6,
        /// The server is shutting down.
        ERR_SHUTDOWN = 1 << 31 | 7,
        /// The client must ask for block sizes.
        ERR_BLOCK_SIZE_REQD = 1 << 31 | 8,
        /// Request or reply are too large.
        ERR_TOO_BIG = 1 << 31 | 9,
        /// Extended headers first, or they are in force already.
        ERR_EXT_HEADER_REQD = 1 << 31 | 10,
    }
}

impl OptionReplyCode {
    /// Whether this is an error, known or not.
    pub const fn is_error(self) -> bool {
        self.0 >> 31 == 1
    }
}

wire_codes! {
    /// A piece of information in the answer to INFO and GO (`NBD_INFO_*`).
    InfoCode(u16) {
        /// Size and transmission flags.
        EXPORT = 0,
        /// The export's own name.
        NAME = 1,
        /// A text for humans.
        DESCRIPTION = 2,
        /// Minimum and preferred block size, maximum payload.
        BLOCK_SIZE = 3,
    }
}

wire_codes! {
    /// What a request asks for (`NBD_CMD_*`).
    CommandCode(u16) {
        /// Read.
        READ = 0,
        /// Write.
        WRITE = 1,
        /// Disconnect; has no reply.
        DISC = 2,
        /// Make completed writes durable.
        FLUSH = 3,
        /// The range is needed no more.
        TRIM = 4,
        /// The range will be needed soon.
        CACHE = 5,
        /// Write zeroes.
        WRITE_ZEROES = 6,
        /// Ask for the status of a range in the selected contexts.
        BLOCK_STATUS = 7,
        /// Experimental, not built.
        RESIZE = 8,
    }
}

wire_codes! {
    /// What a structured or extended chunk carries (`NBD_REPLY_TYPE_*`). Errors have bit 15 set.
    ChunkCode(u16) {
        /// Nothing; the last chunk.
        NONE = 0,
        /// Data at an offset.
        OFFSET_DATA = 1,
        /// Zeroes at an offset.
        OFFSET_HOLE = 2,
        /// Status of one context, 32 bit.
        BLOCK_STATUS = 5,
        /// Status of one context, 64 bit.
        BLOCK_STATUS_EXT = 6,
        /// The request failed.
        ERROR = 1 << 15 | 1,
        /// The request failed at an offset.
        ERROR_OFFSET = 1 << 15 | 2,
    }
}

impl ChunkCode {
    /// Whether this is an error chunk, known or not.
    pub const fn is_error(self) -> bool {
        self.0 >> 15 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magics_spell_what_the_specification_says() {
        assert_eq!(&INIT_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn codes_print_their_names() {
        assert_eq!(OptionCode::GO.to_string(), "GO");
        assert_eq!(OptionCode(77).to_string(), "77");
        assert!(OptionReplyCode::ERR_UNSUP.is_error() && !OptionReplyCode::ACK.is_error());
        assert!(ChunkCode(0xffff).is_error() && !ChunkCode::NONE.is_error());
    }
}
