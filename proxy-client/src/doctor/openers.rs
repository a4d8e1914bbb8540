//! Processes that may write to a LUN.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use volmap::sys::DeviceNumber;

use super::family::Family;
use super::finding::{Finding, FindingKind, Severity};
use super::system::System;
use crate::file_id::FileId;

/// Processes that have a device of the family, or the file that stands for it, open for writing.
pub(super) fn find(system: &System, family: &Family<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut unseen = 0;
    for entry in fs::read_dir(system.path("proc")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(process) = name
            .to_str()
            .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            unseen += usize::from(entry.path().exists());
            continue;
        };
        let opened = descriptors.flatten().find_map(|descriptor| {
            let node = opened_of(family, &descriptor.path())?;
            let info = entry.path().join("fdinfo").join(descriptor.file_name());
            may_write(&fs::read_to_string(info).ok()?).then_some(node)
        });
        let Some(node) = opened else { continue };
        let program = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let program = program.trim();
        findings.push(Finding {
            severity: Severity::Warning,
            kind: FindingKind::OpenForWriting,
            message: format!("process {process} ({program}) has {node} open for writing"),
            device: node,
            mend: "let it be only where that process is the host of the volume itself, a virtual machine for one".to_owned(),
        });
    }
    if unseen > 0 {
        findings.push(Finding {
            severity: Severity::Note,
            kind: FindingKind::Unseen,
            device: family.path.display().to_string(),
            message: format!("what {unseen} processes of other users have open could not be looked at"),
            mend: "run the doctor as root".to_owned(),
        });
    }
    findings
}

/// The member of the family that a descriptor is of.
fn opened_of(family: &Family<'_>, descriptor: &Path) -> Option<String> {
    // Pipes and sockets are not worth a look at what they are.
    if !fs::read_link(descriptor).is_ok_and(|target| target.is_absolute()) {
        return None;
    }
    let metadata = fs::metadata(descriptor).ok()?;
    match FileId::of(&metadata) {
        FileId::Device(_) => {
            let device = DeviceNumber::from_stat(metadata.rdev());
            let member = family.members.iter().find(|member| member.device == device)?;
            Some(member.node.clone())
        }
        id => (id == family.id).then(|| family.path.display().to_string()),
    }
}

/// By `/proc/PID/fdinfo/N`, where flags are octal (proc(5)).
fn may_write(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| libc::c_int::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_octal() {
        assert!(may_write("pos:\t0\nflags:\t0100002\nmnt_id:\t29\n"));
        assert!(may_write("flags:\t01\n"));
        assert!(!may_write("flags:\t0100000\n") && !may_write("pos:\t2\n") && !may_write(""));
    }

    #[test]
    fn a_writer_of_a_file_is_found_and_a_reader_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (_, path) = file.into_parts();
        let system = System::live();
        let find = || {
            let family = Family::of(&system, &path).unwrap();
            let mut found = find(&system, &family);
            found.retain(|finding| finding.kind == FindingKind::OpenForWriting);
            found
        };
        let _reader = fs::File::open(&path).unwrap();
        assert_eq!(find(), []);
        let _writer = fs::File::options().append(true).open(&path).unwrap();
        let [found] = find().try_into().unwrap();
        assert!(
            found.message.contains(&std::process::id().to_string()),
            "{found:?}"
        );
    }
}
