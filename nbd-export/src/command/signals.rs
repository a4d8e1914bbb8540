//! The signals that end a program.

use std::io;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Error, ErrorKind};

/// Counts SIGTERM, SIGINT, and the SIGHUP of a terminal that is closed: each would otherwise leave clones and immutable flags
/// behind, or lose what clients have not flushed. Where SIGHUP is ignored (nohup) it stays so.
#[derive(Clone)]
pub struct Signals {
    count: watch::Receiver<usize>,
}

impl Signals {
    /// Catches them from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::System`].
    pub fn catch() -> Result<Self, Error> {
        let catch = |kind| -> io::Result<_> { signal(kind) };
        let unavailable = |why| Error::caused(ErrorKind::System, "cannot catch signals", why);
        let mut term = catch(SignalKind::terminate()).map_err(unavailable)?;
        let mut int = catch(SignalKind::interrupt()).map_err(unavailable)?;
        let mut hangup = match is_ignored(Signal::SIGHUP) {
            true => None,
            false => Some(catch(SignalKind::hangup()).map_err(unavailable)?),
        };
        let (counted, count) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let hung_up = async {
                    match &mut hangup {
                        Some(hangup) => hangup.recv().await,
                        None => std::future::pending().await,
                    }
                };
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                    _ = hung_up => "SIGHUP",
                };
                // Before it is told of: where a terminal was closed, there is nobody to tell.
                counted.send_modify(|count| *count += 1);
                tracing::info!("{name}: shutting down");
            }
        });
        Ok(Self { count })
    }

    /// Returns when there were more than `count`.
    pub async fn more_than(&self, count: usize) {
        let ended = self.count.clone().wait_for(|seen| *seen > count).await.is_err();
        if ended {
            // The runtime goes down, and nobody counts any more.
            std::future::pending::<()>().await;
        }
    }
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
