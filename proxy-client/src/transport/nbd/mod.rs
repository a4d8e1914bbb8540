//! A host's frozen image over NBD, as the pipeline sees it.
//!
//! Law P5 lives here: every connection selects the frozen image's own context, so that an answer never comes from another
//! frozen image under the same name. A lost connection is taken up again with the same frozen UUID, or not at all.

mod link;
mod published;
mod source;
#[cfg(test)]
mod tests;

pub use link::{Link, LinkError};
pub use published::Published;
pub use source::NbdSource;
