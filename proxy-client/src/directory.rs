//! The directory that a file lies in.

use std::path::Path;

/// Where a file lies, or is to lie: `.` for a bare name.
pub(crate) fn directory_of(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}
