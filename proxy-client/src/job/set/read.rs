//! Sets that are verified and restored.

use std::path::Path;
use std::pin::pin;

use super::manifest::SetManifest;
use crate::config::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::interrupt::Interrupt;
use crate::job::restore::{RestoreOptions, Restored, restore_unless};
use crate::job::verify::{Verified, verify};

/// Verifies every image of a set, and that it is the one that belongs to it.
///
/// # Errors
/// [`ErrorKind::ImageBad`] and others of [`verify`].
pub fn verify_set(
    manifest: &Path,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(SetManifest, Vec<Verified>)> {
    let set = SetManifest::read(manifest)?;
    let mut verified = Vec::new();
    for (image, path) in set.paths(manifest) {
        image.check(&path)?;
        let found = verify(&path, &[], interrupt, progress)?;
        // What the whole image came to, and not only what its end says.
        if found.end.root.to_string() != image.root {
            let message = "this is not the image that belongs to the set";
            return Err(Error::new(ErrorKind::ImageBad, message).at_path(path));
        }
        verified.push(found);
    }
    Ok((set, verified))
}

/// Restores every volume of a set to a file of its name in a directory, which is made if it is not there. All images are looked at
/// before the first volume is written.
///
/// # Errors
/// [`ErrorKind::ImageBad`] and others of a restore; what was restored before is left.
pub async fn restore_set(
    manifest: &Path,
    directory: &Path,
    options: &RestoreOptions,
    stop: impl Future<Output = Error>,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Vec<Restored>> {
    let set = SetManifest::read(manifest)?;
    for (image, path) in set.paths(manifest) {
        image.check(&path)?;
    }
    let failed = |error| Error::io("making the directory", directory, error);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut stop = pin!(stop);
    let mut restored = Vec::new();
    for (image, path) in set.paths(manifest) {
        let options = RestoreOptions {
            image: path.clone(),
            parents: options.parents.clone(),
            output: Place::Path(directory.join(&image.volume)),
            ..options.clone()
        };
        let done = restore_unless(&options, stop.as_mut(), progress).await?;
        if done.end.root.to_string() != image.root {
            let message = "another image came in its place while it was restored";
            return Err(Error::new(ErrorKind::ImageBad, message).at_path(path));
        }
        restored.push(done);
    }
    Ok(restored)
}
