//! What may hang is done on threads of its own: no deadline ends a system call that waits for a disk.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use crate::cow::error::CowError;
use crate::cow::together::OneFailed;

/// Does something of each at once, so that writers wait for the slowest of them and not for their sum; and waits for it until then. Who is late
/// goes on by itself, nobody learns what it came to, and `late` is told in its place.
pub(super) fn each_by<T: Send + 'static, R: Send + 'static>(
    until: Instant,
    late: impl Fn() -> CowError,
    all: Vec<T>,
    one: impl Fn(T) -> Result<R, CowError> + Send + Sync + 'static,
) -> Result<Vec<R>, OneFailed> {
    let one = Arc::new(one);
    let begin = |item| {
        let one = Arc::clone(&one);
        let (tell, told) = channel();
        let tells = move || {
            // Nobody listens any more to who is late.
            let _ = tell.send(one(item));
        };
        (thread::Builder::new().spawn(tells), told)
    };
    let begun: Vec<_> = all.into_iter().map(begin).collect();
    let outcomes = begun.into_iter().map(|(thread, told)| {
        let thread = thread?;
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(late()),
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => resume_unwind(panic),
                Ok(()) => unreachable!("it tells before it ends"),
            },
        }
    });
    // All of them have ended then, or are late.
    let outcomes: Vec<Result<R, CowError>> = outcomes.collect();
    let failed = |(nth, outcome): (usize, Result<R, CowError>)| outcome.map_err(|why| OneFailed { nth, why });
    outcomes.into_iter().enumerate().map(failed).collect()
}
