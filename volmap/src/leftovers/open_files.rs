//! Which files somebody has open, as far as procfs tells.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

/// Whether a process that can be seen has a file open. Only root sees those of others.
pub(super) fn is_open(file: &Metadata) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut descriptors = processes
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.parse::<u32>().is_ok())
        })
        // A process that ends meanwhile has nothing open.
        .flat_map(|process| {
            fs::read_dir(process.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten()
        });
    descriptors.any(|descriptor| {
        fs::metadata(descriptor.path()).is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
    })
}
