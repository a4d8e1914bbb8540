//! Starting programs.
//!
//! Between `fork` and `exec` a child has all descriptors of its parent, those that close at `exec` too, and for as long a file that is open
//! for writing in the parent cannot be leased. So whoever closes such a file and then needs the lease keeps programs from being
//! started meanwhile; all that this process starts is started here. A child that has begun may still be closing what it does not need:
//! who needs the lease asks for it again for a moment.

use std::io;
use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock};

/// Read by those who start a program, until it has a memory of its own.
static BEGINNING: RwLock<()> = RwLock::new(());

/// Starts a program; it has a memory of its own when this returns.
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let _begins = BEGINNING.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Does something while no program is being started.
pub(crate) fn while_none_begins<T>(work: impl FnOnce() -> T) -> T {
    let _none = BEGINNING.write().unwrap_or_else(PoisonError::into_inner);
    work()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_program_begins_meanwhile() {
        thread::scope(|scope| {
            let started = while_none_begins(|| {
                let started = scope.spawn(|| spawn(&mut Command::new("true")).unwrap().wait().unwrap());
                thread::sleep(Duration::from_millis(300));
                assert!(!started.is_finished(), "it waits");
                started
            });
            assert!(started.join().unwrap().success());
        });
    }

    #[test]
    fn one_that_begins_is_waited_for() {
        let has_begun = AtomicBool::new(false);
        let begins = BEGINNING.read().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| while_none_begins(|| assert!(has_begun.load(Ordering::SeqCst))));
            thread::sleep(Duration::from_millis(300));
            has_begun.store(true, Ordering::SeqCst);
            drop(begins);
        });
    }
}
