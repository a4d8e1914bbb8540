//! A live pool, as the device-mapper knows it.

use std::io;
use std::sync::Arc;

use super::target::{PoolStatus, TargetError};
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::Control;

/// Why a pool gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum PoolError {
    #[error("the device-mapper cannot be asked for the thin pool: {0}")]
    DeviceMapper(#[from] io::Error),
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// What is asked of a pool, and told to it.
pub(super) trait Pool: Send + Sync {
    /// Its device-mapper name, as an operator would give it to `dmsetup`.
    fn name(&self) -> &str;

    /// Its device-mapper UUID, which is nobody else's.
    fn uuid(&self) -> &str;

    /// Its status now. Looking commits nothing.
    fn status(&self) -> Result<PoolStatus, PoolError>;

    /// Sends a message to its target.
    fn send(&self, message: &str) -> io::Result<()>;
}

/// A pool of this machine.
#[derive(Debug)]
pub(super) struct LivePool {
    control: Arc<Control>,
    device: DeviceNumber,
    name: String,
    uuid: String,
}

impl LivePool {
    /// The pool that is `device`.
    pub(super) fn new(control: Arc<Control>, device: DeviceNumber) -> io::Result<Self> {
        let status = control.device_status(device)?;
        Ok(Self {
            control,
            device,
            name: status.name,
            uuid: status.uuid,
        })
    }
}

impl Pool for LivePool {
    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn status(&self) -> Result<PoolStatus, PoolError> {
        let status = self.control.target_status(self.device)?;
        Ok(PoolStatus::parse(&status.targets)?)
    }

    fn send(&self, message: &str) -> io::Result<()> {
        self.control.message(self.device, message)
    }
}
