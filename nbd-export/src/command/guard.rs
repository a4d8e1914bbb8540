//! `nbd-export guard`: what an agent starts for itself, to see to the end of a freeze whatever becomes of the agent.

use std::io::{self, BufReader};

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, ErrorKind};
use crate::host::watch;

pub(super) fn run() -> Result<(), Error> {
    let failed = |error| Error::caused(ErrorKind::System, "cannot catch signals", error);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let _within = runtime.enter();
    // Whoever ends the agent's whole group or service ends the agent: the guardian's end is that of its input. (Caught, not ignored:
    // hooks get them as they are.)
    let _caught = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(|kind| signal(kind).map_err(failed));
    watch(BufReader::new(io::stdin()), &mut io::stdout());
    Ok(())
}
