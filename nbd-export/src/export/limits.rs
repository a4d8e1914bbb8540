//! Bounds of what one request may cost.

/// Most descriptors in one reply to BLOCK_STATUS, over all of its contexts: 2 MiB of reply under extended headers, so that a
/// connection's requests in flight stay small, and still 8 replies for a million extents. The NBD specification
/// allows 2^20 in a context.
pub const DESCRIPTORS_MAX: usize = 1 << 17;

/// Extents looked at for a request that asks for one descriptor only: enough to join small neighbours, cheap enough
/// for a client that walks the map in single steps (qemu).
pub const ONE_DESCRIPTOR_LOOKAHEAD: usize = 64;

/// Stretches resolved through the stores for one reply: one extent of a frozen image may be cut into many by the layers
/// below.
pub const STRETCHES_MAX: usize = 1 << 17;

/// Pieces of a volume that are looked at for one context of what changed, in one reply: it is made on the thread of a connection, which can
/// do nothing else meanwhile. Some 100 µs, for 16 GiB of a volume in pieces of 4 KiB.
pub const CHANGED_PIECES_LOOKED_AT: u64 = 1 << 22;

/// Most disks whose size a description tells: more than a volume lies on, but for a pool of many.
pub const DISKS_TOLD_MAX: usize = 64;

/// Most bytes of a description that tell of disks. With 1 KiB for all else it stays below the longest string of the protocol.
pub const DISKS_TOLD_BYTES: usize = 3 << 10;

/// Buffers that a connection keeps for its next reads.
pub const SPARE_BUFFERS_MAX: usize = 64;

/// Bytes of buffers that a connection keeps for its next reads. Few, so that they stay in the processor's cache, and so that an idle
/// connection costs little; a read of more memory than this takes it anew each time.
pub const SPARE_BYTES_MAX: usize = 4 << 20;

/// Longest read that the thread of a connection copies itself: while it copies, it can do nothing else.
pub const AT_ONCE_MAX: u64 = 4 << 20;

/// Smallest read that is sent by reference: below it the second system call costs more than the copy.
pub const BY_REFERENCE_MIN: u64 = 16 << 10;

/// Smallest run of zeroes that is worth a chunk of its own in a sparse reply: below it, the chunk header and the
/// client's handling cost more than the zeroes.
pub const HOLE_CHUNK_MIN: u64 = 4096;

/// Bytes that one CMD_CACHE reads at most, as many as a READ. The command is advice, and a client may give it for a whole volume and
/// go away.
pub const CACHE_MAX: u64 = 32 << 20;

/// Most bytes of an origin that one step of a TRIM or WRITE_ZEROES covers. A step holds the origin's gate: a freeze, and the
/// end of the agent, wait for the step and not for a whole volume that is wiped. As much as the largest WRITE.
pub const WIPE_STEP: u64 = 32 << 20;

/// Most bytes of a plain volume that one system call of a TRIM or WRITE_ZEROES covers: nothing can stop it, and a session ends no
/// sooner than its calls. Storage that knows zeroes does so much in well below a second.
pub const ZERO_STEP: u64 = 1 << 30;

/// Bytes read at a time to warm the cache for CMD_CACHE: the memory one such request takes.
pub const CACHE_STEP: u64 = 1 << 20;
