//! Exports that a host makes for the client that enters them: `NAME@new` is a frozen image that is not there yet.

use std::time::Duration;

use nbd_export::uri::NbdUri;

use super::buffers::BufferPool;
use super::connection::Connection;
use super::error::NbdError;
use super::limits::Deadlines;

/// What the name of an export that is made on request ends with.
const NEW: &str = "@new";

/// How long a host may take to freeze a volume: its hooks have an hour each at most, and nobody gives them that.
const FREEZE: Duration = Duration::from_secs(600);

/// Whether an export is made for whoever enters it.
pub fn is_made_on_request(uri: &NbdUri) -> bool {
    uri.export.as_str().ends_with(NEW)
}

/// Has an export made, and gives the URI by which it, and no newer one, is reached from now on. The host keeps the export for as long as the
/// connection lives, and some time longer.
///
/// # Errors
/// [`NbdError`]: the host makes none, for one.
pub async fn make(uri: &NbdUri, deadlines: Deadlines) -> Result<(NbdUri, Connection), NbdError> {
    let deadlines = Deadlines {
        handshake: deadlines.handshake.max(FREEZE),
        ..deadlines
    };
    let connection = Connection::connect_with(uri, Vec::new(), deadlines, BufferPool::default()).await?;
    // Without a name of its own it is an export like others, that happens to be called so.
    let export = connection.session().export.name.clone();
    let made = NbdUri {
        export,
        ..uri.clone()
    };
    Ok((made, connection))
}
