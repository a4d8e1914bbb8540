//! The operator's wish to stop, for jobs on threads that wait for disks and pipes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Raised once, seen by every clone.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on [`Self::check`] fails.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// To be called wherever a job can stop: an error takes the ordinary way out, which cleans up.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`], once raised.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_see_it() {
        let interrupt = Interrupt::default();
        let clone = interrupt.clone();
        clone.check().unwrap();
        interrupt.raise();
        assert_eq!(clone.check().unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
