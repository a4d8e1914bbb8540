//! The command line: definitions only. What they mean is in `config`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Off-host block backup: reads a volume's frozen image straight from the shared disk, checks with the host that every byte was
/// still the frozen one, and writes an image that stock zstd restores.
#[derive(Parser, Debug)]
#[command(name = "proxy-client", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// How errors are printed on stderr
    #[arg(long, global = true, value_enum, default_value_t = ErrorFormat::Text, value_name = "FORMAT")]
    pub error_format: ErrorFormat,

    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failed, 2 usage, 3 damaged (unreadable ranges), 4 policy missed, \
5 frozen image gone, 6 image bad.\nLogs go to stderr; RUST_LOG sets how much (default: warn).";

/// How errors are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ErrorFormat {
    /// A sentence, and what to do about it.
    Text,
    /// One JSON object with kind, message, advice and exit code.
    Json,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Back a frozen image up to a file or stdout
    Backup(BackupArgs),
    /// Write an image back to a file or block device
    Restore(RestoreArgs),
    /// Check every byte of an image
    Verify(VerifyArgs),
    /// Show what an image is and how its bytes were got
    Inspect(InspectArgs),
    /// Play the whole story on this machine: freeze, back up under writes, restore, compare
    Demo(DemoArgs),
}

/// Arguments of `backup`.
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The export of the frozen image: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_name = "NBD-URI")]
    pub uri: String,

    /// The image to write; `-` is stdout. An existing file is refused
    #[arg(long, short, value_name = "FILE|-")]
    pub output: PathBuf,

    /// A disk that the host's volume lies on, as this machine sees it. ID is the host's name for it; a disk with an identity
    /// of its own (WWID, serial) needs none. Without --lun everything is read over NBD
    #[arg(long, value_name = "[ID=]PATH")]
    pub lun: Vec<String>,

    /// Exit with 4 unless at least this share of the data was read directly. The image is written and valid all the same
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub require_direct: Option<f64>,

    /// Read this share of the directly read data through the host as well, and compare
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "0")]
    pub audit: f64,

    /// End with one JSON object on stdout (on stderr when the image goes to stdout)
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `restore`.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The image; `-` is stdin
    #[arg(value_name = "IMAGE|-")]
    pub image: PathBuf,

    /// A new file, or an existing file or block device (see --force)
    #[arg(long, short, value_name = "PATH")]
    pub output: PathBuf,

    /// Overwrite a file with data in it, or a device that seems to hold something. Never overrides "mounted", "too small" or
    /// "being read"
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `verify`.
#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// The image; `-` is stdin
    #[arg(value_name = "IMAGE|-")]
    pub image: PathBuf,
}

/// Arguments of `inspect`.
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(clap::Args, Debug)]
pub struct DemoArgs {
    /// Work in this directory and keep everything there; it must be on a file system that takes O_DIRECT
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("a percentage is a number from 0 to 100".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn percentages_are_bounded() {
        assert_eq!(percent("95"), Ok(95.0));
        assert_eq!(percent("0.5%"), Ok(0.5));
        assert_eq!(percent("100"), Ok(100.0));
        for bad in ["-1", "100.1", "NaN", "x", ""] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
