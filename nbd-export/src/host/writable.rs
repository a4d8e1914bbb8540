//! Plain writable volumes: served, never frozen.

use std::path::PathBuf;
use std::sync::Arc;

use volmap::frozen::FrozenImage;
use volmap::layers::Layers;
use volmap::storage::LiveVolume;

use super::around::Around;
use super::open::at;
use super::source::{Source, VolumeKind};
use crate::config::NamedPath;
use crate::error::{Error, ErrorKind};
use crate::export::{Export, WritableExport};

/// A file or block device that is served read-write as it is.
pub(super) struct WritableSource {
    path: PathBuf,
    export: Arc<WritableExport>,
    rotates: bool,
}

impl WritableSource {
    pub(super) fn open(config: &NamedPath, layers: &Layers) -> Result<Self, Error> {
        let volume = LiveVolume::open(&config.path, layers)
            .map_err(|why| at(ErrorKind::Volume, "volume", &config.name, &config.path, why))?;
        Ok(Self {
            path: config.path.clone(),
            export: Arc::new(WritableExport::new(volume)),
            rotates: layers.rotates(&config.path),
        })
    }
}

impl Source for WritableSource {
    fn kind(&self) -> VolumeKind {
        VolumeKind::Writable
    }

    fn path(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> Result<u64, Error> {
        Ok(self.export.info().size)
    }

    fn rotates(&self) -> bool {
        self.rotates
    }

    fn freeze(&self, _around: &mut Around<'_>) -> Result<Arc<dyn FrozenImage>, Error> {
        Err(Error::new(
            ErrorKind::Freeze,
            format!(
                "{} is served as it is (--writable), and nothing of it can be frozen: serve it as an --origin with a \
                 --copy-area",
                self.path.display()
            ),
        ))
    }

    fn live(&self) -> Option<Arc<dyn Export>> {
        Some(self.export.clone())
    }
}
