//! What can be wrong with a peer, in three families: its bytes cannot be decoded, it broke a rule, or what it does
//! is legal but not supported here. And a fourth outcome that is nobody's fault: it refused.

use super::constants::{ChunkCode, InfoCode, OptionCode, OptionReplyCode};
use super::context::ContextId;
use super::flags::ClientFlags;
use super::request::Cookie;
use super::text::ErrorText;

/// Bytes that are no message of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// A field needs more bytes than its message holds.
    #[error("a message ends early: a field of {wanted} bytes, {left} left")]
    Truncated {
        /// Bytes of the field.
        wanted: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes behind the last field of a message.
    #[error("{0} bytes too many in a message")]
    TrailingBytes(usize),
    /// A magic number is wrong: the peer speaks another protocol, or the two have lost step.
    #[error("wrong magic {found:#x}")]
    BadMagic {
        /// What came instead.
        found: u64,
    },
    /// A string breaks the rules for strings.
    #[error(transparent)]
    BadString(#[from] StringError),
}

/// Why bytes are no string of the protocol ("Conventions").
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StringError {
    /// Not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// Holds a NUL.
    #[error("a string holds a NUL")]
    Nul,
    /// Longer than [`super::limits::MAX_STRING`].
    #[error("a string has {0} bytes, 4096 is the most")]
    TooLong(usize),
    /// A context name or query is not `namespace:leaf`.
    #[error("a context name needs a namespace and a colon")]
    NoNamespace,
}

/// A rule of the specification that the peer broke. Each ends the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerMisbehaved {
    // The client, during the handshake.
    /// "The server MUST drop the TCP connection if the client sets an unknown flag."
    #[error("the client set unknown flags ({0})")]
    UnknownClientFlags(ClientFlags),
    /// Only EXPORT_NAME is valid without fixed newstyle.
    #[error("the client sent {0} without fixed newstyle")]
    OptionWithoutFixedNewstyle(OptionCode),
    /// An option announced more data than [`super::limits::MAX_OPTION_DATA`].
    #[error("the client announced {length} bytes of data for option {option}")]
    OptionTooLong {
        /// The option.
        option: OptionCode,
        /// What it announced.
        length: u32,
    },
    /// "Once extended headers are successfully requested, a client MUST NOT use NBD_OPT_EXPORT_NAME."
    #[error("the client used EXPORT_NAME after EXTENDED_HEADERS")]
    ExportNameAfterExtendedHeaders,

    // Both, during the handshake.
    /// Bytes behind STARTTLS or its ACK and before TLS: an attacker's, who wants them taken for the peer's (CVE-2021-3716).
    #[error("there are bytes in the clear between STARTTLS and TLS")]
    BytesBeforeTls,

    // The client, during transmission.
    /// A payload longer than any that the server takes.
    #[error("the client announced a payload of {0} bytes")]
    PayloadTooLong(u64),

    // The server, during the handshake.
    /// A reply to another option than the one that is open.
    #[error("the server answered option {found}, {expected} is open")]
    WrongOption {
        /// The option that is open.
        expected: OptionCode,
        /// The option that it answered.
        found: OptionCode,
    },
    /// A reply that this option cannot have.
    #[error("the server answered option {option} with {reply}")]
    UnexpectedOptionReply {
        /// The option.
        option: OptionCode,
        /// The reply.
        reply: OptionReplyCode,
    },
    /// A reply longer than [`super::limits::MAX_OPTION_REPLY`].
    #[error("the server announced {length} bytes of reply to option {option}")]
    OptionReplyTooLong {
        /// The option.
        option: OptionCode,
        /// What it announced.
        length: u32,
    },
    /// More replies than [`super::limits::MAX_LISTED`] or [`super::limits::MAX_LISTED_BYTES`].
    #[error("the server's replies to option {0} do not end")]
    EndlessReplies(OptionCode),
    /// An ACK that carries data.
    #[error("the server's ACK of option {0} carries data")]
    AckWithData(OptionCode),
    /// GO acknowledged without NBD_INFO_EXPORT.
    #[error("the server acknowledged GO and told no size")]
    NoExportInfo,
    /// The same information twice.
    #[error("the server told {0} twice")]
    DuplicateInfo(InfoCode),
    /// Block sizes that are no powers of two, out of range or out of order.
    #[error("the server's block sizes {minimum}/{preferred}/{maximum} are not legal")]
    BadBlockSizes {
        /// Minimum block size.
        minimum: u32,
        /// Preferred block size.
        preferred: u32,
        /// Maximum payload.
        maximum: u32,
    },
    /// `NBD_FLAG_HAS_FLAGS` "MUST always be 1".
    #[error("the server's transmission flags lack HAS_FLAGS")]
    NoTransmissionFlags,
    /// A context selected that was not asked for.
    #[error("the server selected a context that was not asked for")]
    UnaskedContext,
    /// Two contexts of one id, or one context twice.
    #[error("the server selected a context or an id twice (id {0})")]
    DuplicateContext(ContextId),
    /// Zeroes behind the answer to EXPORT_NAME that are no zeroes.
    #[error("the padding behind the answer to EXPORT_NAME is not zero")]
    PaddingNotZero,
    /// "The server MUST NOT fail NBD_OPT_GO with NBD_REP_ERR_UNSUP" after extended headers.
    #[error("the server took extended headers and does not know GO")]
    NoGoAfterExtendedHeaders,

    // The server, during transmission.
    /// A reply to no request that is open: wrong, answered already, or after its last chunk.
    #[error("the server answered a request that is not open (cookie {0})")]
    UnknownCookie(Cookie),
    /// A simple reply where only chunks are allowed.
    #[error("the server sent a simple reply where a chunk is due (cookie {0})")]
    UnexpectedSimpleReply(Cookie),
    /// A structured or extended reply that was not negotiated.
    #[error("the server sent a kind of reply that was not negotiated")]
    ReplyNotNegotiated,
    /// The offset of an extended reply is not that of the request.
    #[error("the server's reply names offset {found}, the request {expected}")]
    WrongReplyOffset {
        /// Offset of the request.
        expected: u64,
        /// Offset in the reply.
        found: u64,
    },
    /// A chunk of an unknown kind, or one that this command cannot have.
    #[error("the server sent a chunk of type {0} that this command cannot have")]
    UnexpectedChunk(ChunkCode),
    /// A chunk whose length does not fit its type.
    #[error("the server sent a chunk of type {chunk} with {length} bytes")]
    BadChunkLength {
        /// The type.
        chunk: ChunkCode,
        /// Its announced length.
        length: u64,
    },
    /// NBD_REPLY_TYPE_NONE without the DONE flag.
    #[error("the server sent an empty chunk that is not the last")]
    EmptyChunkNotLast,
    /// Content outside the range that was asked for.
    #[error("the server sent {length} bytes at {offset}, outside the request")]
    ContentOutsideRequest {
        /// Offset of the chunk.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// The same bytes twice.
    #[error("the server sent the bytes at {offset} twice")]
    OverlappingContent {
        /// Offset of the later chunk.
        offset: u64,
    },
    /// Two content chunks in answer to a READ with DF.
    #[error("the server fragmented a reply that must not be")]
    Fragmented,
    /// More content chunks than [`super::limits::MAX_CONTENT_CHUNKS`].
    #[error("the server sent too many chunks for one request")]
    TooManyChunks,
    /// Success, and bytes are missing.
    #[error("the server claimed success and left out {0} bytes")]
    MissingContent(u64),
    /// Success, and the chunk of a context is missing.
    #[error("the server claimed success and left out context {0}")]
    MissingContext(ContextId),
    /// Status of a context that was not selected, or not asked for.
    #[error("the server sent status of context {0}, which was not asked for")]
    UnknownContext(ContextId),
    /// Two status chunks of one context.
    #[error("the server sent status of context {0} twice")]
    ContextTwice(ContextId),
    /// An extent of no bytes.
    #[error("the server sent an extent of length 0 for context {0}")]
    EmptyExtent(ContextId),
    /// A status chunk whose count and length disagree.
    #[error("the server sent {found} descriptors and announced {announced}")]
    WrongDescriptorCount {
        /// What it announced.
        announced: u32,
        /// What fits the length.
        found: u64,
    },
    /// Extents that go on after the request is covered, or break the rules of REQ_ONE.
    #[error("the server sent extents beyond the request for context {0}")]
    ExtentsBeyondRequest(ContextId),
    /// An error chunk that carries no error.
    #[error("the server sent an error chunk without an error")]
    ErrorWithoutValue,
    /// An error chunk whose message is longer than the chunk.
    #[error("the server sent an error chunk whose message does not fit it")]
    ErrorTextTooLong,
}

/// Legal, and not supported by this side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerIncompatible {
    /// The server speaks the oldstyle handshake.
    #[error("the server speaks only the old handshake of NBD; it must be replaced by one from after 2012")]
    Oldstyle,
    /// The server knows only EXPORT_NAME, and more is needed.
    #[error("the server knows no options, so nothing can be listed")]
    NotFixedNewstyle,
    /// The server wants TLS.
    #[error("the server tells nothing without TLS: use a nbds:// URI")]
    TlsRequired,
    /// TLS is wanted, and the server is too old for it.
    #[error("the server knows no options, and so no TLS")]
    NoTls,
    /// More than 2^63-1 bytes.
    #[error("the export has {0} bytes, 2^63-1 is the most")]
    ExportTooLarge(u64),
    /// Contexts are asked for, and the server has neither structured replies nor extended headers.
    #[error("the server knows no metadata contexts")]
    NoContexts,
}

/// An option that the server refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the server refused {option} with {reply}{}", text.in_parentheses())]
pub struct OptionRefused {
    /// The option.
    pub option: OptionCode,
    /// The error.
    pub reply: OptionReplyCode,
    /// What the server said to it.
    pub text: ErrorText,
}

/// Why a session ended before its time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The peer's bytes are no messages.
    #[error("the peer's bytes cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// The peer broke a rule.
    #[error("the peer broke the protocol: {0}")]
    Misbehaved(#[from] PeerMisbehaved),
    /// The peer does something legal that is not supported here.
    #[error("the peer is not compatible: {0}")]
    Incompatible(#[from] PeerIncompatible),
    /// The server refused what was asked.
    #[error(transparent)]
    Refused(#[from] OptionRefused),
    /// The client asked for something that can only be refused by ending the session.
    #[error("the client asked for an export that is refused")]
    ExportNameRefused,
}

impl From<StringError> for ProtocolError {
    fn from(error: StringError) -> Self {
        Self::Decode(DecodeError::BadString(error))
    }
}
