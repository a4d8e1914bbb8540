//! A frozen set as an export, for whoever had it made: the name of the set is what it tells. The bytes are in the exports of its volumes.

use std::sync::Arc;

use volmap::range::ByteRange;

use super::description::{SetMembership, describe_set};
use super::frozen::FrozenExport;
use super::live::{all_data, allocation_only};
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, ReadShape};
use super::pieces::Pieces;
use crate::proto::BlockSizes;

/// It is not empty, so that whoever takes it for a volume and copies it fails, and does not have a good copy of nothing.
const SIZE: u64 = 4096;

/// A frozen set. Nothing can be read of it.
pub struct SetExport {
    set: SetMembership,
    /// Held, so that whoever has the set open reads each of them.
    members: Vec<Arc<FrozenExport>>,
}

impl SetExport {
    /// The set of these exports.
    pub fn of(set: SetMembership, members: Vec<Arc<FrozenExport>>) -> Self {
        Self { set, members }
    }
}

fn no_bytes() -> ExportError {
    ExportError::Unsupported("a set has no bytes of its own: its volumes are exports of their own")
}

impl Export for SetExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: SIZE,
            writable: false,
            fast_zero: false,
            block: BlockSizes::default(),
            description: describe_set(&self.set),
        }
    }

    fn contexts(&self) -> Vec<Context> {
        allocation_only()
    }

    fn read(&self, _: ByteRange, _: ReadShape, _: &mut Pieces) -> Result<(), ExportError> {
        Err(no_bytes())
    }

    fn standing(&self) -> Result<(), ExportError> {
        self.members.iter().try_for_each(|member| member.standing())
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        _: bool,
    ) -> Result<BlockStatus, ExportError> {
        Ok(all_data(range, selected))
    }

    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Err(no_bytes())
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
}
