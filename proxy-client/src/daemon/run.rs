//! The life of a daemon.

use std::path::Path;
use std::sync::Arc;

use nbd_export::command::Signals;
use nbd_export::config::{Inherited, PassedAddress, PassedSocket};
use nbd_export::server::{Readiness, UnixSocket};
use nbd_export::tls::ServerTls;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::config::DaemonConfig;
use super::connection::{Door, Listener};
use super::queue::Queue;
use super::repository::Repository;
use super::scheduler::Scheduler;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::Spool;
use crate::runtime::to_its_end;

/// Runs the daemon of a configuration file until a signal ends it. Jobs under way then have the time that the configuration gives
/// them; what is not done by then is begun again at the next start.
///
/// # Errors
/// It cannot start.
pub fn run(config: &Path) -> Result<()> {
    // Before anything is opened or started.
    let inherited = Inherited::take(false, None).map_err(|error| {
        Error::new(ErrorKind::Usage, "the sockets that were passed cannot be used").caused_by(error)
    })?;
    let config = DaemonConfig::load(config)?;
    to_its_end(async |signals| serve(config, inherited, signals).await)
}

async fn serve(config: DaemonConfig, inherited: Inherited, signals: Signals) -> Result<()> {
    let mut readiness = Readiness::new(None, inherited.notify);
    let listeners = listeners(&config, inherited.sockets).await?;
    let repository = Arc::new(Repository::open(&config.repository)?);
    if let Some(spool) = &config.spool {
        // Rather now than in every job.
        Spool::open(&spool.directory, spool.size)?;
    }
    let queue = Arc::new(Queue::open(&config.state)?);
    let scheduler = Arc::new(Scheduler::new(Arc::new(config), queue, repository)?);
    let door = Door::new(Arc::clone(&scheduler));
    let mut doors = JoinSet::new();
    for listener in listeners {
        doors.spawn(door.clone().serve(listener));
    }
    tracing::info!(repository = %scheduler.repository.root().display(), "ready");
    readiness.tell();
    let stop = {
        let signals = signals.clone();
        async move { signals.more_than(0).await }
    };
    let running = tokio::spawn(Arc::clone(&scheduler).run(stop));
    let life = async {
        signals.more_than(0).await;
        readiness.stopping();
        // Who asks how far a job is gets an answer as long as there is one.
        running.await
    };
    let ended = tokio::select! {
        ended = life => ended.map_err(|error| Error::new(ErrorKind::Io, "the scheduler failed").caused_by(error)),
        () = scheduler.queue.failed() => {
            let message = "the queue cannot be written: nothing can be taken in or noted until the daemon is started again";
            Err(Error::new(ErrorKind::Io, message).at_path(&scheduler.config.state))
        }
    };
    doors.shutdown().await;
    ended
}

async fn listeners(config: &DaemonConfig, passed: Vec<PassedSocket>) -> Result<Vec<Listener>> {
    let failed = |what: &str, error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Io, format!("cannot listen on {what}")).caused_by(error)
    };
    let tls = match &config.tls_dir {
        Some(directory) => Some(
            ServerTls::load(directory)
                .map_err(|error| Error::new(ErrorKind::Usage, "listen.tls-dir").caused_by(error))?,
        ),
        None => None,
    };
    let mut listeners = Vec::new();
    for PassedSocket { socket, address } in passed {
        match (&address, &tls) {
            (PassedAddress::Unix(_), _) => {
                if let Some(why) = address.lets_all_users_in() {
                    let message = format!(
                        "the socket that was passed is for those whom its file lets in, but {why}: set SocketMode=0600"
                    );
                    return Err(Error::new(ErrorKind::Usage, message));
                }
                let listener = std::os::unix::net::UnixListener::from(socket);
                let listener = listener
                    .set_nonblocking(true)
                    .and_then(|()| UnixListener::from_std(listener));
                listeners.push(Listener::PassedUnix(
                    listener.map_err(|error| failed("the socket that was passed", error.into()))?,
                ));
            }
            (PassedAddress::Tcp(_), Some(tls)) => {
                let listener = std::net::TcpListener::from(socket);
                let listener = listener
                    .set_nonblocking(true)
                    .and_then(|()| TcpListener::from_std(listener));
                let listener =
                    listener.map_err(|error| failed("the socket that was passed", error.into()))?;
                listeners.push(Listener::Tcp(listener, tls.clone()));
            }
            (PassedAddress::Tcp(address), None) => {
                let message =
                    format!("{address} was passed to listen on, and needs certificates: listen.tls-dir");
                return Err(Error::new(ErrorKind::Usage, message));
            }
        }
    }
    if let Some(path) = &config.socket {
        let socket =
            UnixSocket::bind(path).map_err(|error| failed(&path.display().to_string(), error.into()))?;
        listeners.push(Listener::Unix(socket));
    }
    if let Some(tls) = &tls {
        for address in &config.tcp {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| failed(&address.to_string(), error.into()))?;
            tracing::info!(address = ?listener.local_addr().ok(), "listening");
            listeners.push(Listener::Tcp(listener, tls.clone()));
        }
    }
    if listeners.is_empty() {
        let message = "nobody could reach the daemon: give listen.socket or listen.tcp";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(listeners)
}
