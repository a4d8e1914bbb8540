//! What is wanted of a job that runs.

use tokio::sync::watch;

use crate::error::{Error, ErrorKind};

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// That it comes to its end.
    GoOn,
    /// That nothing is left of it.
    Cancel,
    /// That it stops where it can go on at the next start.
    Leave,
}

/// Where a job hears of it.
#[derive(Clone, Debug)]
pub(super) struct Orders(pub(super) watch::Receiver<Order>);

impl Orders {
    /// What is wanted now.
    pub(super) fn now(&self) -> Order {
        *self.0.borrow()
    }

    /// Returns when the job is to stop.
    pub(super) async fn stopped(&self) -> Error {
        // Whoever gives orders is gone when the daemon ends.
        let _ = self.0.clone().wait_for(|order| *order != Order::GoOn).await;
        Error::new(ErrorKind::Interrupted, "the job was told to stop")
    }
}
