//! The command line: definitions only. What they mean is in `config`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use nbd_export::config::parse_size;

use crate::config::parse_duration;
use crate::nbd::{Deadlines, PoolOptions};

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
    /// Write an image back to a file, a block device or a writable NBD server
    Restore(RestoreArgs),
    /// Copy between NBD servers, files, block devices and streams
    Copy(CopyArgs),
    /// Show what an NBD server and its exports say of themselves, and their maps
    Info(InfoArgs),
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
    /// The export of the frozen image: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; with nbds encrypted, or not at all
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

    /// Where certificates are, for nbds: ca-cert.pem tells which servers to believe; client-cert.pem and client-key.pem prove who
    /// we are
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

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

    /// A new file, an existing file or block device (see --force), or an NBD URI of an export that is overwritten
    #[arg(long, short, value_name = "PATH|NBD-URI")]
    pub output: OsString,

    /// Overwrite a file with data in it, or a device that seems to hold something. Never overrides "mounted", "too small" or
    /// "being read"
    #[arg(long)]
    pub force: bool,

    /// How a server is talked to
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `copy`.
#[derive(clap::Args, Debug)]
pub struct CopyArgs {
    /// What is read: an NBD URI, a file, a block device, or `-` for stdin
    #[arg(value_name = "SRC")]
    pub source: OsString,

    /// What is written: an NBD URI of an export that is overwritten, a new file, an existing file or block device (see --force),
    /// `-` for stdout, or `null:` to measure a source
    #[arg(value_name = "DST")]
    pub target: OsString,

    /// Overwrite a file with data in it, or a device that seems to hold something. Never overrides "mounted", "too small" or
    /// "being read"
    #[arg(long)]
    pub force: bool,

    /// Bytes that stdin must have; the copy fails if it ends earlier or later. With K, M, G or T: powers of 1024
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,

    /// The device or export holds nothing but zeroes: those of the source are not written. Nothing checks this
    #[arg(long)]
    pub target_is_zero: bool,

    /// Write data that is zero in blocks of this size as zeroes; 0 writes all data as it is
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "4K")]
    pub sparse: u64,

    /// Requests in flight on each connection
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), default_value_t = 16)]
    pub requests: u16,

    /// Longest request; a server's own maximum is kept as well
    #[arg(long, value_name = "SIZE", value_parser = request_size, default_value = "256K")]
    pub request_size: u64,

    /// How servers are talked to
    #[command(flatten)]
    pub server: ServerArgs,

    /// End with one JSON object on stdout (on stderr when the copy goes to stdout)
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `info`.
#[derive(clap::Args, Debug)]
pub struct InfoArgs {
    /// The export; for --list any export of the server
    #[arg(value_name = "NBD-URI")]
    pub uri: String,

    /// List the names and descriptions of all exports
    #[arg(long, conflicts_with_all = ["map", "totals", "size"])]
    pub list: bool,

    /// Print the size in bytes and nothing else
    #[arg(long, conflicts_with_all = ["map", "totals"])]
    pub size: bool,

    /// Print the map of a context: offset, length, status, and what the status means
    #[arg(long, value_name = "CONTEXT", num_args = 0..=1, require_equals = true, default_missing_value = "base:allocation")]
    pub map: Option<String>,

    /// Print the sum of each status instead of the extents of the map
    #[arg(long, requires = "map")]
    pub totals: bool,

    /// Print JSON: one object, or an array of the map
    #[arg(long)]
    pub json: bool,

    /// Where certificates are, for nbds: ca-cert.pem tells which servers to believe; client-cert.pem and client-key.pem prove who
    /// we are
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// How long everything may take; without it as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = deadline)]
    pub timeout: Option<Duration>,
}

/// How NBD servers are talked to. Durations are seconds, or have units: 500ms, 30s, 5m, 1h30m.
#[derive(clap::Args, Clone, Debug)]
pub struct ServerArgs {
    /// Where certificates are, for nbds: ca-cert.pem tells which servers to believe; client-cert.pem and client-key.pem prove who
    /// we are
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// Most connections to an export that allows several
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), default_value_t = 4)]
    pub connections: u16,

    /// How long a server may take for one reply: 500ms, 30s, 5m. Then its connection is given up
    #[arg(long, value_name = "DURATION", value_parser = deadline, default_value = "90s")]
    pub request_timeout: Duration,

    /// How long a lost connection is tried to be taken up again; 0 does not try
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "60s")]
    pub reconnect: Duration,

    /// How long the whole job may take; without it as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = deadline)]
    pub timeout: Option<Duration>,
}

impl ServerArgs {
    /// What a pool of connections makes of them.
    pub fn pool_options(&self) -> PoolOptions {
        PoolOptions {
            connections: self.connections.into(),
            deadlines: Deadlines::with_request(self.request_timeout),
            reconnect: self.reconnect,
        }
    }
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

fn deadline(text: &str) -> Result<Duration, &'static str> {
    match parse_duration(text)? {
        Duration::ZERO => Err("nothing can be done in no time"),
        duration => Ok(duration),
    }
}

/// Block sizes are powers of two, up to 64 KiB: a request keeps to all of them.
fn request_size(text: &str) -> Result<u64, String> {
    match parse_size(text).map_err(|error| error.to_string())? {
        size if size.is_power_of_two() && (4096..=32 << 20).contains(&size) => Ok(size),
        _ => Err("a request has a power of two of bytes, from 4K to 32M".into()),
    }
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
