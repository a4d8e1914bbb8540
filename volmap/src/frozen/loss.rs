//! The loss of a frozen image's content, which is for good (law H6).

use std::io;
use std::sync::OnceLock;

use uuid::Uuid;

use super::FrozenError;

/// Whether the content of a frozen image is lost, and why. It never comes back.
#[derive(Debug)]
pub(super) struct Loss {
    frozen: Uuid,
    reason: OnceLock<String>,
}

impl Loss {
    /// Of an image whose content stands.
    pub(super) fn none_of(frozen: Uuid) -> Self {
        Self {
            frozen,
            reason: OnceLock::new(),
        }
    }

    /// Loses the content. The first reason stays.
    pub(super) fn lose(&self, reason: String) -> FrozenError {
        let reason = self.reason.get_or_init(|| {
            tracing::error!(frozen = %self.frozen, reason, "the frozen image is gone");
            reason
        });
        FrozenError::Gone(reason.clone())
    }

    /// As [`lose`](Self::lose), because that was asked for.
    pub(super) fn thaw(&self) {
        self.reason.get_or_init(|| "it was thawed".to_owned());
    }

    /// Whether the content still stands: looked at when this is called, never earlier (law H4). The witness is asked for nothing
    /// once the content is lost.
    ///
    /// # Errors
    /// [`FrozenError::Gone`]: it is lost, or the witness just said so. Those of `look`.
    pub(super) fn sample<T>(
        &self,
        look: impl FnOnce() -> io::Result<Result<T, String>>,
    ) -> Result<T, FrozenError> {
        let gone = |reason: &String| FrozenError::Gone(reason.clone());
        if let Some(reason) = self.reason.get() {
            return Err(gone(reason));
        }
        match (look()?, self.reason.get()) {
            // Thawed meanwhile: what was looked at may be another's by now.
            (_, Some(reason)) => Err(gone(reason)),
            (Err(reason), None) => Err(self.lose(reason)),
            (Ok(seen), None) => Ok(seen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T>(sampled: Result<T, FrozenError>) -> Option<String> {
        match sampled {
            Ok(_) => None,
            Err(FrozenError::Gone(reason)) => Some(reason),
            Err(FrozenError::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn lost_is_lost_whatever_is_seen_later() {
        let loss = Loss::none_of(Uuid::nil());
        assert_eq!(loss.sample(|| Ok(Ok(7))).unwrap(), 7);
        let lost = || loss.sample(|| Ok(Err::<(), _>("the first".to_owned())));
        assert_eq!(reason(lost()).as_deref(), Some("the first"));
        let later = loss.sample(|| -> io::Result<Result<(), String>> { panic!("nothing is asked") });
        assert_eq!(reason(later).as_deref(), Some("the first"));
        loss.thaw();
        assert_eq!(reason(lost()).as_deref(), Some("the first"));
    }

    #[test]
    fn what_is_seen_while_it_is_thawed_counts_for_nothing() {
        let loss = Loss::none_of(Uuid::nil());
        let seen = loss.sample(|| {
            loss.thaw();
            Ok(Ok(()))
        });
        assert_eq!(reason(seen).as_deref(), Some("it was thawed"));
    }

    #[test]
    fn a_witness_that_cannot_be_asked_loses_nothing() {
        let loss = Loss::none_of(Uuid::nil());
        let failed = loss.sample(|| Err::<Result<(), _>, _>(io::Error::other("not now")));
        assert!(matches!(failed, Err(FrozenError::Io(_))));
        loss.sample(|| Ok(Ok(()))).unwrap();
    }
}
