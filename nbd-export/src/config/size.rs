//! Sizes as operators write them.

use volmap::freeze::SnapshotSize;

/// Why a text is no size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// Not a number with an optional unit.
    #[error("a size is a number of bytes, or of K, M, G or T (powers of 1024)")]
    Malformed,
    /// More than 2^63 - 1 bytes.
    #[error("the size is larger than any file can be")]
    TooLarge,
}

/// A number of bytes, or of `K`, `M`, `G`, `T` (also `KiB` and so on): powers of 1024.
///
/// # Errors
/// [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.strip_suffix("iB").unwrap_or(unit) {
        "" if unit.is_empty() => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(SizeError::Malformed),
    };
    if number.is_empty() {
        return Err(SizeError::Malformed);
    }
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or(SizeError::TooLarge)
}

/// Why a text is no size of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotSizeError {
    /// Neither a size nor a percentage.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Nothing, or more than all.
    #[error("it is 1% to 100% of the volume, or a size above 0")]
    Range,
}

/// A size, or hundredths of the volume as `15%`.
///
/// # Errors
/// [`SnapshotSizeError`].
pub fn parse_snapshot_size(text: &str) -> Result<SnapshotSize, SnapshotSizeError> {
    let size = match text.strip_suffix('%') {
        Some(percent) if percent.bytes().all(|b| b.is_ascii_digit()) => {
            SnapshotSize::Percent(percent.parse().map_err(|_| SnapshotSizeError::Range)?)
        }
        Some(_) => return Err(SizeError::Malformed.into()),
        None => SnapshotSize::Bytes(parse_size(text)?),
    };
    match size {
        SnapshotSize::Percent(1..=100) | SnapshotSize::Bytes(1..) => Ok(size),
        _ => Err(SnapshotSizeError::Range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4K", 4096),
            ("1MiB", 1 << 20),
            ("3g", 3 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "iB", "1iB", "1KB", "-1", "1.5G", "1 G", "0x10"] {
            assert_eq!(parse_size(text), Err(SizeError::Malformed), "{text}");
        }
    }

    #[test]
    fn the_largest_size_is_that_of_the_largest_file() {
        assert_eq!(parse_size("9223372036854775807"), Ok(i64::MAX as u64));
        assert_eq!(parse_size("9223372036854775808"), Err(SizeError::TooLarge));
        assert_eq!(parse_size("8388608T"), Err(SizeError::TooLarge));
        assert_eq!(parse_size("99999999999999999999"), Err(SizeError::TooLarge));
    }

    #[test]
    fn a_snapshot_has_a_size_or_a_part_of_the_volume() {
        assert_eq!(parse_snapshot_size("2G"), Ok(SnapshotSize::Bytes(2 << 30)));
        assert_eq!(parse_snapshot_size("1"), Ok(SnapshotSize::Bytes(1)));
        assert_eq!(parse_snapshot_size("1%"), Ok(SnapshotSize::Percent(1)));
        assert_eq!(parse_snapshot_size("100%"), Ok(SnapshotSize::Percent(100)));
        for text in ["0", "0%", "101%", "999%", "%"] {
            assert_eq!(parse_snapshot_size(text), Err(SnapshotSizeError::Range), "{text}");
        }
        for text in ["", "x%", "-1%", "1.5%", "G"] {
            assert_eq!(
                parse_snapshot_size(text),
                Err(SizeError::Malformed.into()),
                "{text}"
            );
        }
    }
}
