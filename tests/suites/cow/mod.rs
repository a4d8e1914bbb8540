//! Copy-before-write under attack: whoever writes to the origin, and whenever, the frozen image is the volume at the instant
//! of the freeze, for the proxy and for every NBD reader.
//!
//! The oracle is a full log of the writes, replayed to the freeze.

mod at_copies;
mod at_reads;
mod crash;
mod endings;
mod hanging;
mod holding;
mod killed;
mod programs;
mod readers;
mod several;

use tests::cow::client::Client;
use tests::cow::log::{Change, Kind};
use volmap::limits::COPY_UNIT;

const MIB: u64 = 1 << 20;

/// Two batches of the proxy.
const SIZE: u64 = 16 * MIB;

/// A copy area that cannot become full.
const ALL_UNITS: u64 = SIZE / COPY_UNIT;

/// The requests that change a volume. Random writers make WRITE_ZEROES that may punch too.
const KINDS: [Kind; 3] = [
    Kind::Write(*b"another "),
    Kind::Trim,
    Kind::WriteZeroes { no_hole: true },
];

/// Changes bytes all over the volume: parts of units, whole ones, neighbours, and the last one.
fn strike(writer: &Client, kind: Kind) {
    for start in (0..SIZE).step_by(usize::try_from(MIB).unwrap()) {
        for (offset, len) in [(0, 512), (5 * COPY_UNIT - 700, 1400), (9 * COPY_UNIT, COPY_UNIT)] {
            let offset = start + offset;
            writer.change(Change { offset, len, kind });
        }
    }
    let (offset, len) = (SIZE - 100, 100);
    writer.change(Change { offset, len, kind });
}
