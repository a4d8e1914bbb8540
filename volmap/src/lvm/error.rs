//! What can go wrong between us and LVM.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

/// Why LVM did not do, or did not tell, what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// LVM's commands are not installed.
    #[error(
        "LVM's commands are not installed: there is no lvm in /usr/sbin, /sbin, /usr/bin or /bin (package lvm2)"
    )]
    Missing,
    /// A command could not be started, or its end not waited for.
    #[error("'{command}' could not be run: {why}")]
    Run {
        /// The command line.
        command: String,
        /// Why.
        why: io::Error,
    },
    /// A command failed.
    #[error("'{command}' failed ({status}): {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A command did not end in time, and was ended.
    #[error("'{command}' did not end within {} seconds and was ended: {stderr}", .patience.as_secs())]
    Deadline {
        /// The command line.
        command: String,
        /// How long it had.
        patience: Duration,
        /// What it had said by then.
        stderr: String,
    },
    /// A command that changes something did not end in time, not even when it was asked to.
    #[error(
        "'{command}' does not end and is left running as process {process}, because killing it could leave devices suspended \
         (dmsetup info shows them): {stderr}"
    )]
    LeftRunning {
        /// The command line.
        command: String,
        /// Its process id.
        process: u32,
        /// What it had said by then.
        stderr: String,
    },
    /// A report that cannot be read.
    #[error("'{command}' gave a report that cannot be read: {why}")]
    Report {
        /// The command line.
        command: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The device-mapper could not be asked which logical volume a device is.
    #[error("the device-mapper cannot be asked, which needs root: {0}")]
    DeviceMapper(io::Error),
}
