//! Which frozen set a backup is of, where the host is to freeze a new one: one backup has one frozen set, however often it is begun.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use nbd_export::proto::ExportName;
use nbd_export::uri::NbdUri;

use super::backup::{IMAGE_SUFFIX, image_of, stem, volume_of};
use super::manifest::is_manifest;
use super::told_set;
use crate::directory::directory_of;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{HEADER_FRAME_MAX, Header, header_of};
use crate::nbd::{Connection, Deadlines, is_made_on_request, make};

/// A frozen set that a server is asked for.
pub(super) struct AskedFor {
    pub(super) name: String,
    /// Whether an earlier attempt began with it.
    pub(super) begun: bool,
    /// Keeps what was made for this backup until something else does.
    pub(super) _held: Option<Connection>,
}

/// The frozen set that stands under this name at a server; in the place of one that the host is to make, that of which there are images beside the
/// manifest. Only if there are none, and nothing is in the way of the manifest, the host makes one.
///
/// # Errors
/// [`ErrorKind::OutputExists`], and those of a host that freezes none.
pub(super) async fn asked_for(
    server: &NbdUri,
    name: &str,
    manifest: &Path,
    deadlines: Deadlines,
) -> Result<AskedFor> {
    let settled = |name: String, begun| AskedFor {
        name,
        begun,
        _held: None,
    };
    let export = ExportName::new(name).map_err(|error| {
        Error::new(ErrorKind::Usage, "a set cannot be called so")
            .of_volume(name)
            .caused_by(error)
    })?;
    let uri = NbdUri {
        export,
        ..server.clone()
    };
    if !is_made_on_request(&uri) {
        return Ok(settled(name.to_owned(), false));
    }
    if fs::symlink_metadata(manifest).is_ok() {
        let message = "there is a file of this name already: nothing is frozen for it";
        return Err(Error::new(ErrorKind::OutputExists, message).at_path(manifest));
    }
    if let Some(begun) = begun(name, manifest)? {
        tracing::info!(set = begun, "an earlier attempt began with this frozen set");
        return Ok(settled(begun, true));
    }
    let (made, held) = make(&uri, deadlines)
        .await
        .map_err(|error| Error::from(error).of_volume(name))?;
    if told_set(&held.session().export.description).is_none() {
        let message = "the host froze a volume, and no set: leave `set` out of the URI, and name the export";
        return Err(Error::new(ErrorKind::Usage, message).of_volume(name));
    }
    tracing::info!(set = made.export.as_str(), "the host froze a set for this backup");
    Ok(AskedFor {
        name: made.export.as_str().to_owned(),
        begun: false,
        _held: Some(held),
    })
}

/// The frozen set of which an earlier attempt left images beside the manifest, whole or unfinished.
fn begun(name: &str, manifest: &Path) -> Result<Option<String>> {
    let failed = |error| Error::io("looking for images of an earlier attempt", manifest, error);
    let stem = stem(manifest);
    let begins = format!("{stem}.");
    let mut sets = BTreeSet::new();
    for entry in fs::read_dir(directory_of(manifest)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let file = entry.file_name();
        let file = file.to_string_lossy();
        let image = file.strip_suffix(".partial").unwrap_or(&file);
        // A pipe would keep us waiting.
        if !image.starts_with(&begins)
            || !image.ends_with(IMAGE_SUFFIX)
            || !entry.file_type().map_err(failed)?.is_file()
        {
            continue;
        }
        // Images of a manifest whose name is longer begin like ours: only with the volume is it known where the name of the manifest ends.
        let header = header_at(&entry.path()).map_err(failed)?;
        let ours = header.filter(|header| image == image_of(manifest, &volume_of(&header.volume)));
        sets.extend(ours.and_then(|header| Some(told_set(&header.description)?.to_owned())));
    }
    let volume = |set: &str| set.split('@').next().map(str::to_owned);
    sets.retain(|set| volume(set) == volume(name));
    let first = sets.pop_first();
    if let (Some(one), Some(another)) = (&first, sets.first()) {
        let message = format!(
            "there are images of two frozen sets beside it, {one} and {another}: remove them to begin again"
        );
        return Err(Error::new(ErrorKind::OutputExists, message).at_path(manifest));
    }
    let complete =
        ["", ".set", ".json", ".set.json"].map(|end| manifest.with_file_name(format!("{stem}{end}")));
    if let (Some(set), Some(other)) = (&first, complete.iter().find(|other| is_manifest(other))) {
        let message = format!(
            "its images would be called as those of {} are, which is a backup of {set}: nothing is frozen for it",
            other.display()
        );
        return Err(Error::new(ErrorKind::OutputExists, message).at_path(manifest));
    }
    Ok(first)
}

/// What an image says of itself; `None` where it is none.
fn header_at(image: &Path) -> std::io::Result<Option<Header>> {
    let mut first = Vec::new();
    File::open(image)?
        .take(HEADER_FRAME_MAX as u64)
        .read_to_end(&mut first)?;
    Ok(header_of(&first))
}
