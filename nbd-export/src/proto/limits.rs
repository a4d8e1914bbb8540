//! Limits of the protocol and of what we take from a peer, each with its reason.

/// Longest string of the protocol in bytes: names, queries, error texts ("Conventions").
pub const MAX_STRING: usize = 4096;

/// Longest data of an option that a server takes. Fits a name, and 200 queries as long as our longest context
/// name; more is taken for an attack (CVE-2017-15119), because nothing may be read or stored for it.
pub const MAX_OPTION_DATA: u32 = 64 * 1024;

/// Longest reply to an option that a client takes: two strings and their lengths fit many times.
pub const MAX_OPTION_REPLY: u32 = 64 * 1024;

/// Most queries in one LIST or SET_META_CONTEXT, and most contexts selected by one session: a disk and a store
/// context for each of more than a hundred disks.
pub const MAX_CONTEXTS: usize = 256;

/// Most replies to one option that a client collects.
pub const MAX_LISTED: usize = 65_536;

/// Most bytes of replies to one option that a client collects, so that a server cannot feed a list for ever.
pub const MAX_LISTED_BYTES: usize = 8 * 1024 * 1024;

/// Longest data in one request or one content chunk. The specification asks for at least this much and wants
/// portable clients to stay within it ("Size constraints"); a longer payload is taken for an attack.
pub const MAX_PAYLOAD: u32 = 32 * 1024 * 1024;

/// Most descriptors in one block status chunk (NBD_REPLY_TYPE_BLOCK_STATUS: "SHOULD NOT send more than 2^20").
pub const MAX_DESCRIPTORS: usize = 1 << 20;

/// Most content chunks, and most error chunks, in the reply to one request: the largest payload in pieces of 512 bytes. Without
/// it a server could make us keep a range for each byte, or listen for ever.
pub const MAX_CONTENT_CHUNKS: usize = (MAX_PAYLOAD / 512) as usize;

/// Longest payload of an error chunk: its message length has 16 bits, and a later kind of error may add fields.
pub const MAX_ERROR_PAYLOAD: u64 = 6 + 65_535 + 64;

/// What a longer extent is cut to in a 32-bit descriptor: a multiple of every legal minimum block size.
pub const COMPACT_EXTENT_CLAMP: u64 = 0xffff_0000;

/// Largest size of an export: file offsets are signed (CVE-2023-5215).
pub const MAX_EXPORT_SIZE: u64 = i64::MAX as u64;

/// Largest legal minimum block size.
pub const MAX_MINIMUM_BLOCK: u32 = 64 * 1024;
