//! Frozen images: what every provider promises to the export above it.
//!
//! Invariants, for all providers (docs/law.md):
//!
//! * **H1** a location or a zero is published only when the frozen bytes are already so on the device;
//! * **H2** before a published byte may stop being the frozen one, its generation rises, visibly to every later
//!   [`FrozenImage::status`];
//! * **H4** [`FrozenImage::status`] samples the witness when it is called, never earlier;
//! * **H5** [`FrozenImage::read_at`] copies into the caller's memory, and only then checks that what it copied was frozen;
//! * **H6** once the content is lost, every call says [`FrozenError::Gone`], for good.

mod changed;
pub(crate) mod clone_name;
mod error;
pub(crate) mod fixed;
mod free_space;
mod graph_cell;
mod hold;
mod image;
mod immutable;
pub(crate) mod lease_table;
pub(crate) mod left_snapshot;
mod loss;
pub(crate) mod lvm_snapshot;
pub(crate) mod lvm_thin;
pub(crate) mod new_snapshot;
mod pieces;
mod pinned;
pub(crate) mod quiesce;
pub(crate) mod reflink;
mod same_places;
pub(crate) mod still_file;
mod without_free_space;

pub use changed::{ChangedMap, NoLineage};
pub use clone_name::leftover_clones;
pub use error::FreezeError;
pub use free_space::{FreeSpace, NoFreeSpace};
pub use image::{
    Attestation, CopyAreaUse, Description, FrozenError, FrozenImage, Stability, Status, StatusExtent,
    Strength,
};
pub use lvm_snapshot::SnapshotSize;
pub use without_free_space::without_free_space;
