//! Jobs, run to their end or to the signal that ends them.

use std::time::Duration;

use nbd_export::command::Signals;
use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, ErrorKind, Result};
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// How long an interrupted job may take to clean up.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Runs a job until it ends or the operator interrupts it.
///
/// # Errors
/// Those of the job; [`ErrorKind::Interrupted`].
pub fn in_runtime<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    to_its_end(async |signals| {
        tokio::select! {
            result = job => result,
            () = signals.more_than(0) => Err(interrupted()),
        }
    })
}

/// Runs a job that sees to interruptions itself. Signals are caught before it begins: by one that comes when it has changed
/// something the process must not die.
///
/// # Errors
/// Those of the job.
pub fn to_its_end<T>(job: impl AsyncFnOnce(Signals) -> Result<T>) -> Result<T> {
    let runtime = runtime()?;
    let result = runtime.block_on(async { job(caught()?).await });
    // Writers' threads remove what they have not finished; one may be stuck in a pipe that nobody reads.
    runtime.shutdown_timeout(STOP_DEADLINE);
    result
}

/// Runs a job on this thread that tells how far it is, with a progress bar, until it ends or the operator interrupts it.
///
/// # Errors
/// Those of the job.
pub fn watched<T>(job: impl FnOnce(&Interrupt, &mut dyn FnMut(u64, u64)) -> Result<T>) -> Result<T> {
    let runtime = runtime()?;
    let interrupt = Interrupt::default();
    let raised = interrupt.clone();
    let signals = runtime.block_on(async { caught() })?;
    runtime.spawn(async move {
        signals.more_than(0).await;
        raised.raise();
    });
    let progress = Progress::on_terminal();
    let result = job(&interrupt, &mut |done, size| progress.update_bytes(done, size));
    progress.end();
    result
}

/// Why a job must not go on, once there is a reason.
pub async fn stop(signals: Signals, deadline: Option<Duration>) -> Error {
    let passed = async {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = passed => late(),
        () = signals.more_than(0) => interrupted(),
    }
}

/// Keeps a job to its deadline, if it has one.
///
/// # Errors
/// Those of the job; [`ErrorKind::DeadlinePassed`].
pub async fn within<T>(deadline: Option<Duration>, job: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(deadline) = deadline else {
        return job.await;
    };
    tokio::time::timeout(deadline, job).await.map_err(|_| late())?
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Io, "the runtime cannot start").caused_by(error))
}

/// The signals that end a program, caught from now on.
fn caught() -> Result<Signals> {
    Signals::catch().map_err(|error| Error::new(ErrorKind::Io, "signals cannot be caught").caused_by(error))
}

fn late() -> Error {
    Error::new(ErrorKind::DeadlinePassed, "the job took longer than --timeout")
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    /// A job may go far before it first waits for anything, and with that for a signal.
    #[test]
    fn a_signal_before_a_job_first_waits_is_heard() {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let error = to_its_end(async |signals| {
                raise(signal).unwrap();
                Err::<(), _>(stop(signals, None).await)
            });
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Interrupted, "{signal}");
        }
    }
}
