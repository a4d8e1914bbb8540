//! The identity that a disk has of its own, on this machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::store::{Place, StoreGraph};

/// WWID, NGUID or serial of the disk at `path`, or of the disk that all paths of a multipath device lead to; asked of the disk itself
/// where it is a SCSI disk. Otherwise why it has none that counts; files, loop devices and partitions have none.
///
/// # Errors
/// The path cannot be opened or looked at.
pub fn own_identity(path: &Path) -> io::Result<Result<Identity, String>> {
    let file = File::open(path)?;
    if !file.metadata()?.file_type().is_block_device() {
        return Ok(Err("a file has no identity of its own".into()));
    }
    let mut graph = StoreGraph::new();
    let mapping = Layers::new(Vec::new())?.map(&mut graph, &file, path)?;
    let top = Place {
        store: mapping.top,
        offset: 0,
    };
    if mapping.size == 0 {
        return Ok(Err("it is an empty device, which has no identity".into()));
    }
    // What is a whole disk, and all of it.
    let resolved = graph.resolve(top, mapping.size);
    let whole = resolved.disk().filter(|disk| {
        (disk.offset, resolved.len, graph.store(disk.store).size) == (0, mapping.size, mapping.size)
    });
    let why = || {
        let reason = resolved.opaque.clone();
        reason.unwrap_or_else(|| "it is a part of a disk, which has no identity of its own".into())
    };
    Ok(whole
        .map(|disk| graph.store(disk.store).identity.clone())
        .ok_or_else(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(own_identity(file.path()).unwrap().is_err());
    }
}
