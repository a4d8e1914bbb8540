//! Reading through the host what it may not be able to read.

use bytes::Bytes;
use volmap::range::ByteRange;

use super::parts;
use crate::error::{ErrorKind, Result};
use crate::pipeline::limits::SALVAGE_STEPS;
use crate::pipeline::source::FrozenSource;

/// What the host gave of a range, in order; `None`: it could not read it.
pub(super) type Salvaged = Vec<(ByteRange, Option<Bytes>)>;

/// Reads `range` through the host. Where the host cannot read it, it is asked again for smaller and smaller parts.
///
/// # Errors
/// Whatever else is wrong with host or frozen image: what is lost with them is never called unreadable (law P5).
pub(super) async fn salvage<S: FrozenSource>(source: &S, range: ByteRange) -> Result<Salvaged> {
    let mut got: Salvaged = Vec::new();
    // In reverse, with the number of the step that comes next.
    let mut todo = vec![(range, 0)];
    let mut lost = false;
    while let Some((part, step)) = todo.pop() {
        match source.read(part).await {
            Ok(bytes) => got.push((part, Some(bytes))),
            Err(error) if error.kind() != ErrorKind::HostCannotRead => return Err(error),
            Err(error) => match SALVAGE_STEPS.get(step) {
                Some(&length) => {
                    let smaller: Vec<_> = on_grid(part, length).map(|part| (part, step + 1)).collect();
                    todo.extend(smaller.into_iter().rev());
                }
                None => {
                    tracing::warn!(range = %part, %error, "neither the LUN nor the host can read this");
                    lost = true;
                    got.push((part, None));
                }
            },
        }
    }
    if lost {
        // A frozen image whose content is lost may have failed in any way before the host noticed; it has by now (law P5).
        source.generations(range).await?;
    }
    Ok(got)
}

/// `range` in parts that end on multiples of `length`.
fn on_grid(range: ByteRange, length: u64) -> impl Iterator<Item = ByteRange> {
    let first_end = (range.start() + 1).next_multiple_of(length).min(range.end());
    let first = ByteRange::from_bounds(range.start(), first_end);
    let rest = ByteRange::from_bounds(first_end, range.end());
    first
        .into_iter()
        .chain(rest.into_iter().flat_map(move |rest| parts(rest, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_on_the_grid() {
        let bounds = |start, end| -> Vec<(u64, u64)> {
            on_grid(ByteRange::from_bounds(start, end).unwrap(), 10)
                .map(|range| (range.start(), range.end()))
                .collect()
        };
        assert_eq!(bounds(0, 10), [(0, 10)]);
        assert_eq!(bounds(3, 35), [(3, 10), (10, 20), (20, 30), (30, 35)]);
        assert_eq!(bounds(3, 5), [(3, 5)]);
        assert_eq!(bounds(9, 11), [(9, 10), (10, 11)]);
    }
}
