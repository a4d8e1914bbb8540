//! What would draw a system to a LUN.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use volmap::storage::AlignedBuffer;
use volmap::sys::block_device;

use super::advice;
use super::family::Family;
use super::finding::{Finding, FindingKind, Severity};
use super::system::System;
use crate::restore::signature;

/// What the LUN holds, and whether the kernel would let anybody write to it.
pub(super) fn find(system: &System, family: &Family<'_>, path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(lun) = family.lun else { return findings };
    let mut note = |kind, message, mend| {
        findings.push(Finding {
            severity: Severity::Note,
            kind,
            device: path.display().to_string(),
            message,
            mend,
        });
    };
    let wwid = ["wwid", "device/wwid"]
        .iter()
        .find_map(|name| system.attribute(lun, name));
    if let Some(what) = held_by(path) {
        note(
            FindingKind::Attractive,
            format!("{} holds {what}", path.display()),
            advice::keep_off(what, path),
        );
    }
    if system.attribute(lun, "ro").as_deref() == Some("0") {
        note(
            FindingKind::Writable,
            format!(
                "{} is writable here; while a backup reads it, it is not, unless it is in use",
                path.display()
            ),
            advice::make_read_only(wwid.as_deref(), &system.name(lun)),
        );
    }
    findings
}

/// Read past the cache, which would be stale the next time.
fn held_by(path: &Path) -> Option<&'static str> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let size = block_device::size(&file).ok()?;
    let looked_at = size.min(signature::LOOKED_AT);
    let read = |at: u64| -> Option<AlignedBuffer> {
        let mut buffer = AlignedBuffer::zeroed(usize::try_from(looked_at).ok()?);
        file.read_exact_at(&mut buffer, at).ok()?;
        Some(buffer)
    };
    let (first, last) = (read(0)?, read(size - looked_at)?);
    signature::find(&first, &last, size)
}
