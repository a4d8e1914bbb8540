//! The identity that a disk has of its own, on this machine.

use std::fs::File;
use std::io;
use std::path::Path;

use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::store::{StoreGraph, StoreKind};

/// WWID, NGUID or serial of the disk at `path`; `None` for what has none: files, loop devices, partitions.
///
/// # Errors
/// The path cannot be opened or looked at.
pub fn own_identity(path: &Path) -> io::Result<Option<Identity>> {
    let file = File::open(path)?;
    let mut graph = StoreGraph::new();
    let mapping = Layers::new(Vec::new())?.map(&mut graph, &file, path)?;
    let top = graph.store(mapping.top);
    Ok((top.kind == StoreKind::Disk).then(|| top.identity.clone()))
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
