//! `nbd-export serve`: the agent.

use std::io::Write;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::signals::Signals;
use super::unprintable;
use crate::cli::ServeArgs;
use crate::config::{ControlPath, Inherited, Listener, ServeConfig};
use crate::error::{Error, ErrorKind};
use crate::host::{Host, control};
use crate::server::{BindError, Readiness, Server, UnixSocket, runtime};
use crate::tls::ServerTls;

/// How often it is looked for frozen images whose hold has run out.
const HOLDS_LOOKED_AT: Duration = Duration::from_secs(1);

pub(super) fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<(), Error> {
    let inherited = Inherited::take(args.single, args.ready_fd)?;
    let mut config = match &args.config {
        Some(file) => ServeConfig::load(file, inherited.sockets)?,
        None => ServeConfig::new(args, inherited.sockets, inherited.stdio)?,
    };
    let readiness = Readiness::new(inherited.ready, inherited.notify);
    let runtime = runtime(&config.limits)
        .map_err(|why| Error::caused(ErrorKind::System, "cannot start threads", why))?;
    let served = runtime.block_on(serve(&mut config, readiness, out));
    // Threads that hang in a dead disk must not keep the process.
    runtime.shutdown_background();
    served
}

async fn serve(config: &mut ServeConfig, mut readiness: Readiness, out: &mut dyn Write) -> Result<(), Error> {
    // Before anything is opened: a signal from here on ends in an orderly way.
    let signals = Signals::catch()?;
    let tls = load_tls(config)?;
    let host = Arc::new(Host::open(config)?);
    let listeners = mem::take(&mut config.listeners);
    let mut server = Server::bind(&listeners, host.clone())
        .await?
        .within(config.limits);
    if let Some(tls) = tls {
        server = server.requiring_tls(tls);
    }
    let control = config.control.as_ref().map(open_control).transpose()?.flatten();
    host.publish_at(server.addresses().clone());
    for listener in &listeners {
        if let Listener::Unix { path, .. } = listener {
            tracing::info!(socket = %path.display(), "listening");
        }
    }
    let silent = listeners.iter().any(|l| matches!(l, Listener::Single(_)));
    // What was passed belongs to the server now, and is closed where the server closes it.
    drop(listeners);
    let started = tokio::select! {
        started = freeze_at_start(config, &host) => started.map(|()| true),
        () = signals.more_than(0) => Ok(false),
    };
    let served = match started {
        Ok(true) => match announce(&host, silent, out) {
            Ok(()) => {
                readiness.tell();
                run_until_the_end(server, control, &host, &signals, &readiness).await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    readiness.stopping();
    // Clones, leases and flags are given back also when the start failed half-way.
    host.close();
    served
}

/// What the TLS directory holds, if there shall be TLS.
fn load_tls(config: &ServeConfig) -> Result<Option<ServerTls>, Error> {
    let load = |directory| {
        ServerTls::load(directory).map_err(|why| Error::caused(ErrorKind::Listen, "--tls-dir", why))
    };
    config.tls_directory.as_deref().map(load).transpose()
}

/// Freezes what is to be frozen at start.
async fn freeze_at_start(config: &ServeConfig, host: &Arc<Host>) -> Result<(), Error> {
    let names = config.freeze_at_start.clone();
    let host = Arc::clone(host);
    // A freeze waits for writers and for the disk, and signals are not to wait for it.
    tokio::task::spawn_blocking(move || {
        names
            .iter()
            .try_for_each(|name| host.freeze_at_start(name).map(drop))
    })
    .await
    .map_err(|why| Error::caused(ErrorKind::System, "the freeze at start", why))?
}

/// Prints where the exports are, and that the agent can serve.
fn announce(host: &Host, silent: bool, out: &mut dyn Write) -> Result<(), Error> {
    if silent {
        return Ok(());
    }
    for uri in host.uris() {
        writeln!(out, "{uri}").map_err(unprintable)?;
    }
    writeln!(out, "READY")
        .and_then(|()| out.flush())
        .map_err(unprintable)
}

/// Serves until a signal; a second one cuts the connections that were given time to end.
async fn run_until_the_end(
    server: Server,
    control: Option<UnixSocket>,
    host: &Arc<Host>,
    signals: &Signals,
    readiness: &Readiness,
) {
    let controlled = async {
        match control {
            Some(socket) => control::serve(socket, Arc::clone(host)).await,
            None => std::future::pending().await,
        }
    };
    let holds = async {
        loop {
            tokio::time::sleep(HOLDS_LOOKED_AT).await;
            host.keep_what_is_read();
            host.thaw_what_is_held_no_longer();
        }
    };
    // By itself: what a dead disk keeps waiting here must not keep holds from running out.
    let gone = async {
        loop {
            tokio::time::sleep(HOLDS_LOOKED_AT).await;
            let host = Arc::clone(host);
            let look = move || drop(host.look_for_what_is_gone());
            if let Err(error) = tokio::task::spawn_blocking(look).await {
                tracing::error!(%error, "what was made on request");
            }
        }
    };
    let shutdown = async {
        signals.more_than(0).await;
        readiness.stopping();
    };
    tokio::select! {
        () = server.run(shutdown) => {}
        () = controlled => {}
        () = holds => {}
        () = gone => {}
        () = signals.more_than(1) => tracing::warn!("a second signal: connections are cut"),
    }
}

/// The usual control socket may be another agent's; one that was asked for by name may not.
fn open_control(control: &ControlPath) -> Result<Option<UnixSocket>, Error> {
    match UnixSocket::bind(&control.path) {
        Ok(socket) => {
            tracing::info!(control = %control.path.display(), "control socket");
            Ok(Some(socket))
        }
        Err(error @ BindError::InUse(_)) if !control.given => {
            tracing::warn!(%error, "no control socket: give --control to freeze and thaw on request");
            Ok(None)
        }
        Err(error) => Err(Error::caused(
            ErrorKind::Listen,
            "the control socket: give another --control",
            error,
        )),
    }
}
