//! Entry points for fuzzers: functions of bytes that panic where a promise of [`crate::proto`] is broken. The fuzzer calls them, and
//! the ordinary tests call them with the inputs that it kept.
//!
//! An input is read in one of two ways, by its first byte: as a peer's bytes, or as a script that makes messages which are
//! well framed, so that what lies behind the framing is reached. Either way the machine under test is run twice, with the
//! bytes whole and in pieces: what comes out must not depend on where a network cuts them.

mod client;
mod oracle;
mod script;
mod server;
mod shelf;
mod uri;

/// A function of bytes that panics where a promise is broken.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: [(&str, Target); 3] = [
    ("server", server::server),
    ("client", client::client),
    ("uri", uri::uri),
];
