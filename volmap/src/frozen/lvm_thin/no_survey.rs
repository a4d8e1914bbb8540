//! What an error says of a survey: whether another try can help.

use std::io;

use super::image::NoSurvey;
use super::metadata::MetadataError;

/// A device that fails, or cannot be opened, may be in the middle of a reload: that says nothing of what lies on it.
impl From<io::Error> for NoSurvey {
    fn from(error: io::Error) -> Self {
        Self::NotNow(format!("its thin pool cannot be followed: {error}"))
    }
}

impl From<MetadataError> for NoSurvey {
    fn from(error: MetadataError) -> Self {
        match error {
            MetadataError::Written { .. } => Self::Gone(error.to_string()),
            MetadataError::Read { .. } => Self::NotNow(format!("the metadata of its thin pool: {error}")),
            _ => Self::Opaque(format!(
                "the metadata of its thin pool is not understood: {error}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    /// A device that is being reloaded, or no room for one more open file: that passes.
    #[test]
    fn only_what_was_read_and_not_understood_is_given_up() {
        let passing = [libc::EIO, libc::ENXIO, libc::EMFILE, libc::EBUSY];
        for error in passing.map(io::Error::from_raw_os_error) {
            let read = MetadataError::Read {
                block: 7,
                source: io::Error::from(error.kind()),
            };
            assert!(matches!(NoSurvey::from(read), NoSurvey::NotNow(_)), "{error}");
            assert!(matches!(NoSurvey::from(error), NoSurvey::NotNow(_)));
        }
        let checksum = NoSurvey::from(MetadataError::Checksum { block: 7 });
        assert!(matches!(checksum, NoSurvey::Opaque(_)));
        let written = NoSurvey::from(MetadataError::Written { thin: 7 });
        assert!(matches!(written, NoSurvey::Gone(_)));
    }
}
