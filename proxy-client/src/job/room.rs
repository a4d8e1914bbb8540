//! Whether a volume fits an export.

use crate::error::{Error, ErrorKind, Result};
use crate::nbd::Pool;

/// Bytes of the export behind `size` bytes of a source.
///
/// # Errors
/// [`ErrorKind::TargetTooSmall`].
pub(super) fn room_on(pool: &Pool, size: u64) -> Result<u64> {
    let room = pool.session().export.size;
    room.checked_sub(size).ok_or_else(|| {
        let message = format!("the source has {size} bytes, the target {room}");
        Error::new(ErrorKind::TargetTooSmall, message).of_volume(pool.session().requested.as_str())
    })
}
