//! The identity that a disk has of its own, on this machine.

use std::fs::File;
use std::io;
use std::path::Path;

use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::store::{Place, StoreGraph};

/// WWID, NGUID or serial of the disk at `path`, or of the disk that all paths of a multipath device lead to; asked of the disk itself
/// where it is a SCSI disk. `None` for what has none: files, loop devices, partitions.
///
/// # Errors
/// The path cannot be opened or looked at.
pub fn own_identity(path: &Path) -> io::Result<Option<Identity>> {
    let file = File::open(path)?;
    let mut graph = StoreGraph::new();
    let mapping = Layers::new(Vec::new())?.map(&mut graph, &file, path)?;
    let top = Place {
        store: mapping.top,
        offset: 0,
    };
    if mapping.size == 0 {
        return Ok(None);
    }
    // What is a whole disk, and all of it.
    let resolved = graph.resolve(top, mapping.size);
    let whole = resolved.disk().filter(|disk| {
        (disk.offset, resolved.len, graph.store(disk.store).size) == (0, mapping.size, mapping.size)
    });
    Ok(whole.map(|disk| graph.store(disk.store).identity.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(own_identity(file.path()).unwrap(), None);
    }
}
