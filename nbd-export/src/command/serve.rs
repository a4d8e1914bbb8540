//! `nbd-export serve`: the agent.

use std::io::{self, Write};
use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::unprintable;
use crate::cli::ServeArgs;
use crate::config::{ControlPath, Listener, ServeConfig};
use crate::error::{Error, ErrorKind};
use crate::host::{Host, control};
use crate::server::{BindError, Server, UnixSocket, runtime};

pub(super) fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<(), Error> {
    let config = ServeConfig::try_from(args)?;
    let runtime = runtime(&config.limits)
        .map_err(|why| Error::caused(ErrorKind::System, "cannot start threads", why))?;
    let served = runtime.block_on(serve(&config, out));
    // Threads that hang in a dead disk must not keep the process.
    runtime.shutdown_background();
    served
}

async fn serve(config: &ServeConfig, out: &mut dyn Write) -> Result<(), Error> {
    // Before anything is opened: a signal from here on ends in an orderly way.
    let shutdown = shutdown_signal()?;
    let host = Arc::new(Host::open(config)?);
    let server = Server::bind(&config.listeners, host.clone())
        .await?
        .within(config.limits);
    let control = open_control(&config.control)?;
    host.publish_at(server.addresses().clone());
    for listener in &config.listeners {
        if let Listener::Unix { path } = listener {
            tracing::info!(socket = %path.display(), "listening");
        }
    }
    let started = start(config, &host, out);
    if started.is_ok() {
        let controlled = async {
            match control {
                Some(socket) => control::serve(socket, Arc::clone(&host)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = server.run(shutdown) => {}
            () = controlled => {}
        }
    }
    // Clones, leases and flags are given back also when the start failed half-way.
    host.close();
    started
}

/// Freezes what is to be frozen at start and tells that the agent can serve.
fn start(config: &ServeConfig, host: &Host, out: &mut dyn Write) -> Result<(), Error> {
    if config.freeze_at_start {
        for volume in &config.volumes {
            host.freeze_at_start(&volume.name)?;
        }
    }
    for uri in host.uris() {
        writeln!(out, "{uri}").map_err(unprintable)?;
    }
    writeln!(out, "READY")
        .and_then(|()| out.flush())
        .map_err(unprintable)
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

/// Ready at SIGTERM, SIGINT, or the SIGHUP of a terminal that is closed: each would otherwise leave clones and immutable flags
/// behind. Where SIGHUP is ignored (nohup) it stays so.
fn shutdown_signal() -> Result<impl Future<Output = ()>, Error> {
    let catch = |kind| -> io::Result<_> { signal(kind) };
    let unavailable = |why| Error::caused(ErrorKind::System, "cannot catch signals", why);
    let mut term = catch(SignalKind::terminate()).map_err(unavailable)?;
    let mut int = catch(SignalKind::interrupt()).map_err(unavailable)?;
    let mut hangup = match is_ignored(Signal::SIGHUP) {
        true => None,
        false => Some(catch(SignalKind::hangup()).map_err(unavailable)?),
    };
    Ok(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: shutting down"),
            _ = int.recv() => tracing::info!("SIGINT: shutting down"),
            _ = hung_up => tracing::info!("SIGHUP: shutting down"),
        }
    })
}

/// Whether whoever started us wants a signal ignored.
fn is_ignored(signal: Signal) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, signal))
}

/// Reads the mask of ignored signals (`SigIgn`, proc_pid_status(5)): the lowest bit is signal 1.
fn ignores(status: &str, signal: Signal) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let ignores = |mask: &str, signal| ignores(&format!("Name:\tx\nSigIgn:\t{mask}\n"), signal);
        assert!(ignores("0000000000000001", Signal::SIGHUP));
        assert!(ignores("0000000000001001", Signal::SIGHUP));
        assert!(!ignores("0000000000001000", Signal::SIGHUP));
        assert!(ignores("0000000000001000", Signal::SIGPIPE));
        assert!(!ignores("", Signal::SIGHUP));
    }
}
