//! Images as NBD exports: read where a client asks, and with an overlay written to without a change of the image (docs/serve-images.md).
//!
//! Invariants:
//! * no byte is given out that was not checked against the leaf hashes of a root that was computed before;
//! * what could not be read when an image was made is an error here too, never zeroes;
//! * an overlay takes a unit for its own only once all of its bytes are in it, and says so on the medium only once they are durable.

mod image_export;
mod listening;
mod overlay;
mod overlay_header;
mod shelf;
mod units;

pub(crate) use image_export::ImageExport;
pub(crate) use listening::{allow_lists, check, listeners, of_server};
pub(crate) use overlay::Overlay;
pub(crate) use shelf::Shelf;
