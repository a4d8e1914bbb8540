//! The URI parser.

use crate::uri::NbdUri;

/// What is read is written so that it reads the same again.
pub(super) fn uri(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(uri) = text.parse::<NbdUri>() else {
        return;
    };
    let written = uri.to_string();
    assert_eq!(written.parse().as_ref(), Ok(&uri), "{text:?} became {written:?}");
}
