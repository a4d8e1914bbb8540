//! What becomes of an image that a backup could not finish, and of one that an earlier backup left.

use std::io::Read;
use std::path::Path;

use volmap::range::ByteRange;

use super::thread::on_thread;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Decoder, Event, ImageError, LEAF, Lent, ParentImage};
use crate::output::{PartialFile, partial_name, remove_stale};

/// Bytes per read of what an earlier backup left.
const READ: usize = 1 << 20;

/// Refuses a new backup to `path` where an earlier one left an image that can be finished, or is whole but for its name: hours of work
/// are not replaced unasked.
///
/// # Errors
/// [`ErrorKind::OutputExists`]: there is such an image, or one that is being written. [`ErrorKind::Io`].
pub(super) async fn refuse_resumable(path: &Path) -> Result<()> {
    let partial = partial_name(path)?;
    let is_file = std::fs::symlink_metadata(&partial).is_ok_and(|metadata| metadata.is_file());
    if !is_file || path.exists() {
        // Whoever creates the output says what is wrong.
        return Ok(());
    }
    let path = path.to_owned();
    let is_resumable = on_thread(move || {
        let left = PartialFile::reopen(&path)?;
        has_checkpoint(left.file())
            .map_err(|error| Error::io("reading what was left of a backup", left.partial_path(), error))
    })
    .await?;
    if !is_resumable {
        return Ok(());
    }
    let message = "an earlier backup left this image unfinished: `proxy-client resume` goes on with it; remove it to begin again";
    Err(Error::new(ErrorKind::OutputExists, message).at_path(partial))
}

/// Whether an image has a checkpoint, or its END. What comes before the first checkpoint is as much as a backup does anew in seconds.
fn has_checkpoint(mut file: &std::fs::File) -> std::io::Result<bool> {
    let mut decoder = Decoder::new().with_parent(Some(Box::new(AnyParent)));
    let mut buffer = vec![0; READ];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(decoder.finish().is_ok()),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        decoder.push(&buffer[..read]);
        loop {
            match decoder.next_event() {
                Ok(Some(Event::Checkpoint(_))) => return Ok(true),
                Ok(Some(_)) => {}
                Ok(None) => break,
                // An END behind leaves of a parent that nobody looked for.
                Err(ImageError::RootDiffers) => return Ok(true),
                Err(_) => return Ok(false),
            }
        }
    }
}

/// Stands for any parent: whether there is a checkpoint does not hang on what it holds.
struct AnyParent;

impl ParentImage for AnyParent {
    fn lend(&mut self, _: ByteRange, _: &mut [u8]) -> Lent {
        Lent::Unchecked
    }

    fn leaves(&mut self, range: ByteRange) -> Option<Vec<blake3::Hash>> {
        let count = usize::try_from(range.len().div_ceil(LEAF)).ok()?;
        Some(vec![blake3::Hash::from_bytes([0; 32]); count])
    }
}

/// The error of a backup to `path`, with what is left of the image: it is kept where it can be resumed, and removed where what is in
/// it is in doubt or can never be completed.
pub(super) fn after(error: Error, path: &Path) -> Error {
    let Ok(partial) = partial_name(path) else {
        return error;
    };
    // A complete image that could not get its name says so itself, and there may be a file of somebody else.
    if !partial.exists() || error.kind() == ErrorKind::OutputExists {
        return error;
    }
    if error.kind().spoils_image() {
        if let Err(error) = remove_stale(&partial) {
            tracing::warn!(%error, "the unfinished image could not be removed");
        }
        return error;
    }
    kept(error, path, &partial)
}

/// The cause keeps its kind, and with it its exit code; the sentence is about what is left.
pub(super) fn kept(error: Error, path: &Path, partial: &Path) -> Error {
    let message = format!(
        "the backup is not finished; {} is kept, and `proxy-client resume {}` goes on from its last checkpoint",
        partial.display(),
        path.display()
    );
    Error::new(error.kind(), message).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_an_unfinished_image_depends_on_what_ended_the_backup() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let partial = partial_name(&path).unwrap();
        for (kind, is_kept) in [
            (ErrorKind::HostLost, true),
            (ErrorKind::Interrupted, true),
            (ErrorKind::CopyAreaFilling, true),
            (ErrorKind::AuditFailed, false),
            (ErrorKind::WrongLun, false),
            (ErrorKind::HostCannotRead, false),
            (ErrorKind::FrozenImageGone, false),
        ] {
            std::fs::write(&partial, b"unfinished").unwrap();
            let error = after(Error::new(kind, "an error"), &path);
            assert_eq!((error.kind(), partial.exists()), (kind, is_kept));
        }
    }
}
