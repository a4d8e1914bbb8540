//! The two ways to bytes of a frozen image: `direct` from the LUN, and `nbd` through the host.
//!
//! Nothing here decides whether bytes may be kept: that is the pipeline's validation (docs/law.md).

pub mod direct;
pub mod nbd;
