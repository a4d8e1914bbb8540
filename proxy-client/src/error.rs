//! The one error of this crate: a stable kind, where it happened, and what caused it.
//!
//! Control flow matches on [`Error::kind`] only. What a kind means to the outside, its name, its exit code and the
//! sentence for the operator, stands in one table: [`ErrorKind::row`].

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

use volmap::range::ByteRange;

use crate::image::ImageError;

/// What went wrong, in words that stay the same from release to release.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The command line or an argument makes no sense.
    Usage,
    /// A local file or device could not be opened, read or written.
    Io,
    /// The host could not be reached, or the connection was lost and did not come back.
    HostLost,
    /// The host broke a rule of the NBD protocol.
    HostMisbehaved,
    /// The host speaks NBD, but not enough of it, or wants what is not built.
    HostIncompatible,
    /// The host answered a request with an error.
    HostRefused,
    /// The host did not prove who it is, or did not believe who we are.
    HostUntrusted,
    /// A server that was lost came back with something else under the name of the export.
    ExportChanged,
    /// The job took longer than it was given.
    DeadlinePassed,
    /// The host could not read its own disk.
    HostCannotRead,
    /// A path given as a LUN is not the disk that the host means.
    WrongLun,
    /// This machine uses a LUN: mounted, in a volume group, in an array.
    LunInUse,
    /// No daemon answers.
    DaemonLost,
    /// The daemon does not do what it was asked.
    DaemonRefused,
    /// What a LUN gave, and the host confirmed, is not what the host reads.
    AuditFailed,
    /// The output, or the `.partial` file beside it, is there already.
    OutputExists,
    /// The output lies on, or is, a LUN that is being read or the image itself.
    OutputIsSource,
    /// An earlier write to this output failed, so nothing more is written.
    OutputPoisoned,
    /// A stream that is read has not as many bytes as were announced.
    SourceCut,
    /// The target of a restore holds data.
    TargetNotEmpty,
    /// The target of a restore is mounted, in use, or a LUN that is being read.
    TargetBusy,
    /// The target of a restore is smaller than the volume.
    TargetTooSmall,
    /// The target of a restore is neither a file nor a block device.
    TargetUnfit,
    /// The job was interrupted by the operator.
    Interrupted,
    /// The host's copy area will be full before the backup is done.
    CopyAreaFilling,
    /// Some ranges of the volume could not be read.
    Damaged,
    /// A policy, `--require-direct` for one, was not met.
    PolicyMissed,
    /// An incremental backup cannot continue its parent, and must not become a full one.
    LineageBroken,
    /// The frozen image is gone, or another one stands under its name.
    FrozenImageGone,
    /// The backup image is cut, changed, mixed up, or no backup image.
    ImageBad,
    /// The source, read again, is not what the backup image holds.
    SourceDiffers,
    /// The backup image is of a version or kind that this program does not read.
    ImageUnsupported,
}

/// What a kind means to the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KindRow {
    /// The kind in JSON output and logs.
    pub name: &'static str,
    /// The exit code of a command that ends with it (design: 0 ok, 1 failed, 2 usage, 3 damaged, 4 policy missed,
    /// 5 frozen image gone, 6 image bad).
    pub exit_code: u8,
    /// What the operator can do.
    pub advice: &'static str,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 32] = [
        Self::Usage,
        Self::Io,
        Self::HostLost,
        Self::HostMisbehaved,
        Self::HostIncompatible,
        Self::HostRefused,
        Self::HostUntrusted,
        Self::ExportChanged,
        Self::DeadlinePassed,
        Self::HostCannotRead,
        Self::WrongLun,
        Self::LunInUse,
        Self::DaemonLost,
        Self::DaemonRefused,
        Self::AuditFailed,
        Self::OutputExists,
        Self::OutputIsSource,
        Self::OutputPoisoned,
        Self::SourceCut,
        Self::TargetNotEmpty,
        Self::TargetBusy,
        Self::TargetTooSmall,
        Self::TargetUnfit,
        Self::Interrupted,
        Self::CopyAreaFilling,
        Self::Damaged,
        Self::PolicyMissed,
        Self::LineageBroken,
        Self::FrozenImageGone,
        Self::ImageBad,
        Self::SourceDiffers,
        Self::ImageUnsupported,
    ];

    /// The row of this kind in the table of kinds.
    pub fn row(self) -> KindRow {
        let (name, exit_code, advice) = match self {
            Self::Usage => ("usage", 2, "See --help."),
            Self::Io => (
                "io",
                1,
                "Check the path, its permissions, free space and the kernel log.",
            ),
            Self::HostLost => (
                "host-lost",
                1,
                "Check that nbd-export runs on the host and that the address or socket is right, then start the backup again.",
            ),
            Self::HostMisbehaved => (
                "host-misbehaved",
                1,
                "The server does not speak NBD as the specification wants it; note its name and version and report it.",
            ),
            Self::HostIncompatible => (
                "host-incompatible",
                1,
                "Use another NBD server, or set this one up differently: the message says what it lacks or wants.",
            ),
            Self::HostRefused => (
                "host-refused",
                1,
                "See the log of the server for the reason; `nbdinfo --list` shows what it exports.",
            ),
            Self::HostUntrusted => (
                "host-untrusted",
                1,
                "Compare authority, names and dates of the certificates on both sides; tls-hostname gives the server another name.",
            ),
            Self::ExportChanged => (
                "export-changed",
                1,
                "Check what the server exports under this name, then start again from the beginning.",
            ),
            Self::DeadlinePassed => (
                "deadline-passed",
                1,
                "Allow more time with --timeout, or find out why it took so long.",
            ),
            Self::HostCannotRead => (
                "host-cannot-read",
                1,
                "The kernel log of the host says which of its disks fails, and why; that disk needs a look before the next backup.",
            ),
            Self::AuditFailed => (
                "audit-failed",
                1,
                "One of the two machines reads wrong bytes: compare WWIDs, look for a path with errors; back up without this --lun meanwhile.",
            ),
            Self::WrongLun => (
                "wrong-lun",
                1,
                "The path given with --lun is not the disk that the host reads: compare WWIDs on both machines, beware of clones.",
            ),
            Self::LunInUse => (
                "lun-in-use",
                1,
                "`proxy-client doctor --lun` shows what uses it; only where the host of the volume is this very machine, \
                 --host-is-this-machine.",
            ),
            Self::DaemonLost => (
                "daemon-lost",
                1,
                "Check that `proxy-client daemon` runs, and that --daemon is its socket or address.",
            ),
            Self::DaemonRefused => (
                "daemon-refused",
                1,
                "The daemon's log says more; its configuration says who may do what.",
            ),
            Self::OutputExists => (
                "output-exists",
                1,
                "Choose another name, or remove the old file; images are never overwritten.",
            ),
            Self::OutputIsSource => (
                "output-is-source",
                1,
                "Write to another disk than the one that is being read.",
            ),
            Self::OutputPoisoned => (
                "output-poisoned",
                1,
                "See the first error for the cause; what was written is no complete image.",
            ),
            Self::SourceCut => (
                "source-cut",
                1,
                "Find out why the program that writes to the pipe ended early; what was copied is not whole.",
            ),
            Self::TargetNotEmpty => (
                "target-not-empty",
                1,
                "Check that this is the right target; --force gives its content up.",
            ),
            Self::TargetBusy => (
                "target-busy",
                1,
                "Unmount it, or take it out of its volume group, array, loop device or running backup first; --force does not help here.",
            ),
            Self::TargetTooSmall => (
                "target-too-small",
                1,
                "Restore to a target at least as large as the volume.",
            ),
            Self::TargetUnfit => (
                "target-unfit",
                1,
                "Restore to a regular file, a new file name, or a block device.",
            ),
            Self::Interrupted => ("interrupted", 1, "Start the job again."),
            Self::CopyAreaFilling => (
                "copy-area-filling",
                1,
                "Slow the volume's writer down, or thaw other frozen images of it; then `proxy-client resume` goes on. \
                 Next time give the host a larger copy area.",
            ),
            Self::Damaged => (
                "damaged",
                3,
                "The listed ranges could not be read and hold zeroes in the image; everything else is right.",
            ),
            Self::PolicyMissed => (
                "policy-missed",
                4,
                "The reasons listed say why ranges were not read directly.",
            ),
            Self::LineageBroken => (
                "lineage-broken",
                4,
                "Make a full backup (--parent-policy full does), and let the host keep frozen images for incrementals from now on.",
            ),
            Self::FrozenImageGone => (
                "frozen-image-gone",
                5,
                "Freeze again and start a new backup; the host's log says why the frozen image was lost.",
            ),
            Self::ImageBad => (
                "image-bad",
                6,
                "Do not rely on this image: fetch it again from where it was copied, or take another restore point.",
            ),
            Self::SourceDiffers => (
                "source-differs",
                6,
                "Where it is the same frozen image, rely on neither before it is known who is wrong: verify the image, read the source by \
                 another path; else the source may have been written to.",
            ),
            Self::ImageUnsupported => (
                "image-unsupported",
                6,
                "Use a proxy-client of the version that wrote the image, or a newer one.",
            ),
        };
        KindRow {
            name,
            exit_code,
            advice,
        }
    }

    /// Whether an unfinished image is not worth finishing after an error of this kind: its volume is gone, or not to be read, or bytes in
    /// it may be wrong.
    pub(crate) fn spoils_image(self) -> bool {
        matches!(
            self,
            Self::FrozenImageGone
                | Self::ExportChanged
                | Self::WrongLun
                | Self::AuditFailed
                | Self::HostMisbehaved
                | Self::Damaged
                | Self::HostCannotRead
        )
    }

    /// Exit code of a command that ends with this kind.
    pub fn exit_code(self) -> u8 {
        self.row().exit_code
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// Where an error happened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ErrorContext {
    /// Name of the volume or export.
    pub volume: Option<String>,
    /// Bytes of the volume.
    pub range: Option<ByteRange>,
    /// What was being done, as the end of a sentence that begins with "while": `reading the image`.
    pub stage: Option<&'static str>,
    /// File, device or socket.
    pub path: Option<PathBuf>,
}

/// The error of every public function of this crate that can fail for more than one reason.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    context: ErrorContext,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Shorthand for results with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of a kind, with a sentence for people.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            context: ErrorContext::default(),
            source: None,
        }))
    }

    /// The system refused something on a path.
    pub fn io(stage: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, "the system reports an error")
            .while_doing(stage)
            .at_path(path)
            .caused_by(source)
    }

    /// Adds what was being done.
    #[must_use]
    pub fn while_doing(mut self, stage: &'static str) -> Self {
        self.0.context.stage = Some(stage);
        self
    }

    /// Adds the file, device or socket.
    #[must_use]
    pub fn at_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.context.path = Some(path.into());
        self
    }

    /// Adds the name of the volume.
    #[must_use]
    pub fn of_volume(mut self, volume: impl Into<String>) -> Self {
        self.0.context.volume = Some(volume.into());
        self
    }

    /// Adds the bytes of the volume.
    #[must_use]
    pub fn in_range(mut self, range: ByteRange) -> Self {
        self.0.context.range = Some(range);
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong: the only part that control flow looks at.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The sentence, without context and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened.
    pub fn context(&self) -> &ErrorContext {
        &self.0.context
    }
}

/// One line: sentence, place, causes. The advice of the kind is left to the command line.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let context = self.context();
        if let Some(path) = &context.path {
            write!(f, "{}: ", path.display())?;
        }
        f.write_str(self.message())?;
        if let Some(stage) = context.stage {
            write!(f, " while {stage}")?;
        }
        if let Some(volume) = &context.volume {
            write!(f, ", volume {volume}")?;
        }
        if let Some(range) = context.range {
            write!(f, ", bytes {range}")?;
        }
        let mut told = String::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors tell their cause themselves.
            if !told.ends_with(&text) {
                write!(f, ": {text}")?;
                told = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        let kind = if error.is_unsupported() {
            ErrorKind::ImageUnsupported
        } else {
            ErrorKind::ImageBad
        };
        Self::new(kind, "the backup image cannot be used").caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_of_their_own_and_exit_codes_of_the_design() {
        let mut names: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.row().name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorKind::ALL.len());
        for kind in ErrorKind::ALL {
            assert!((1..=6).contains(&kind.exit_code()), "{kind}");
            assert!(kind.row().advice.ends_with('.'), "{kind}");
        }
        assert_eq!(ErrorKind::Usage.exit_code(), 2);
        assert_eq!(ErrorKind::Damaged.exit_code(), 3);
        assert_eq!(ErrorKind::PolicyMissed.exit_code(), 4);
        assert_eq!(ErrorKind::FrozenImageGone.exit_code(), 5);
        assert_eq!(ErrorKind::ImageBad.exit_code(), 6);
    }

    #[test]
    fn the_line_names_path_stage_and_causes() {
        let error = Error::io(
            "opening the image",
            Path::new("/x/y"),
            std::io::Error::from_raw_os_error(2),
        )
        .in_range(ByteRange::new(4096, 512).unwrap());
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(
            error.to_string(),
            "/x/y: the system reports an error while opening the image, bytes 4096..4608: No such file or directory (os error 2)"
        );
    }
}
