//! The command line: definitions only. What they mean is in `config`.

use std::ffi::OsString;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use nbd_export::config::parse_size;
use nbd_export::generate::GenerateArgs;
use nbd_export::proxy::JobLimits;

use crate::config::{SpoolArgument, parse_duration};
use crate::error::Result;
use crate::job::backup::AUDIT_PERCENT;
use crate::job::lineage::ParentPolicy;
use crate::limits_file::LimitsFile;
use crate::nbd::{Deadlines, PoolOptions};
use crate::pipeline::{Throttle, ThrottleLimits};

mod resume;
mod serve;

pub use resume::ResumeArgs;
pub use serve::{ListenArgs, ServeArgs};

/// Off-host block backup: reads a volume's frozen image straight from the shared disk, checks with the host that every byte was
/// still the frozen one, and writes an image that stock zstd restores.
#[derive(Parser, Debug)]
#[command(name = "proxy-client", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// How errors are printed on stderr
    #[arg(long, global = true, value_enum, default_value_t = ErrorFormat::Text, value_name = "FORMAT")]
    pub error_format: ErrorFormat,

    /// How logs are printed on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,

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

/// How logs are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object on each line.
    Json,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Back a frozen image up to a file or stdout
    Backup(BackupArgs),
    /// Finish an image that a backup left unfinished
    Resume(ResumeArgs),
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
    /// Serve images and chains over NBD, to be read where they are needed, or written to over an overlay
    Serve(ServeArgs),
    /// Look whether this machine keeps its hands off LUNs: mounts, volume groups, arrays, swap, several paths without multipath
    Doctor(DoctorArgs),
    /// Take jobs from hosts and operators, run them, and file the images in a repository
    Daemon(DaemonArgs),
    /// Show the jobs of a daemon, or one of them
    Jobs(JobsArgs),
    /// Show what a daemon does
    Status(StatusArgs),
    /// Play the whole story on this machine: freeze, back up under writes, restore, compare
    Demo(DemoArgs),
    /// Write manual pages or shell completions
    Generate(GenerateArgs),
}

/// Arguments of `backup`.
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The export of the frozen image: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; with nbds encrypted, or not at all.
    /// Several, frozen at one instant, become an image each
    #[arg(value_name = "NBD-URI", required = true)]
    pub uris: Vec<String>,

    /// Back up all exports of the frozen set of this name, as the host calls it: NAME@ID, or NAME for the one made at start; NAME@new
    /// has the host freeze one. The NBD-URI is that of any export of the server. The URI can name it as well: nbd://HOST/?set=NAME
    #[arg(long, value_name = "NAME", conflicts_with = "parent")]
    pub set: Option<String>,

    /// The image to write; `-` is stdout. An existing file is refused, and a name whose FILE.partial can be resumed. Of a set, or of
    /// several exports: the manifest; the images lie beside it, as STEM.VOLUME.vbi.zst
    #[arg(long, short, value_name = "FILE|-")]
    pub output: PathBuf,

    /// A disk that the host's volume lies on, as this machine sees it. ID is the host's name for it; a disk with an identity
    /// of its own (WWID, serial) needs none. Given again for the same disk it is another path to it, for when one fails. Behind an @
    /// are the ranges of bytes that may be read, START-END or START-, with commas between; without them all of the disk. Without
    /// --lun everything is read over NBD
    #[arg(long, value_name = "[ID=]PATH[@RANGES]")]
    pub lun: Vec<String>,

    /// The host of the volume runs on this machine too, so that what uses the LUN here is the host. Without it, a LUN that is
    /// mounted here, or in an active volume group, or in an array, is refused: two machines would write to it
    #[arg(long)]
    pub host_is_this_machine: bool,

    /// Exit with 4 unless at least this share of the data was read directly. The image is written and valid all the same
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub require_direct: Option<f64>,

    /// Stop with 4, and write no image, at the first data that cannot be read directly
    #[arg(long)]
    pub no_fallback: bool,

    /// Read this share of the directly read data through the host as well, and compare; 0 compares nothing
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value_t = AUDIT_PERCENT)]
    pub audit: f64,

    /// Store only what changed since this image was made; the images that it continues itself lie beside it. The host has to know
    /// what changed (nbd-export serve --keep-for-incremental)
    #[arg(long, value_name = "IMAGE")]
    pub parent: Option<PathBuf>,

    /// Where the parent cannot be continued: make a full backup and say so, or fail with exit code 4
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = ParentPolicy::Full)]
    pub parent_policy: ParentPolicy,

    /// Take a dirty bitmap of QEMU (qemu-nbd --bitmap NAME) for what changed. That it was begun when the parent was made, nothing but
    /// your word says
    #[arg(long, value_name = "NAME", requires = "parent")]
    pub bitmap: Option<String>,

    /// Make the image durable, and note how far it is, after this many bytes of it, and every 30 seconds. A backup that was
    /// interrupted goes on from there with `resume`. With K, M, G or T: powers of 1024
    #[arg(long, value_name = "SIZE", value_parser = checkpoint_bytes, default_value = "1G")]
    pub checkpoint_every: u64,

    /// Keep nothing of a backup that fails, so that it cannot be resumed
    #[arg(long, conflicts_with = "checkpoint_every")]
    pub discard_partial: bool,
    /// How long a direct read may take. Then its path is given up
    #[arg(long, value_name = "DURATION", value_parser = deadline, default_value = "60s")]
    pub direct_timeout: Duration,

    /// Let what was read wait in a file of this directory until the output takes it, SIZE bytes at most (half of what is free there): the
    /// frozen image is needed no longer than reading takes
    #[arg(long, value_name = "DIR[,size=SIZE]", value_parser = SpoolArgument::parse)]
    pub spool: Option<SpoolArgument>,

    /// What the backup may take
    #[command(flatten)]
    pub limits: LimitArgs,

    /// How the host is talked to
    #[command(flatten)]
    pub server: ServerArgs,

    /// End with one JSON object on stdout (on stderr when the image goes to stdout)
    #[arg(long)]
    pub json: bool,
}

/// What a backup may take of disks and host.
#[derive(clap::Args, Clone, Debug)]
pub struct LimitArgs {
    /// Read no more than this in a second, from disks and host together. With K, M, G or T: powers of 1024
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub limit_rate: Option<u64>,

    /// Most reads in flight, from disks and host together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub limit_reads: Option<u16>,

    /// While the host takes longer than this to answer about its map, read one at a time, with pauses
    #[arg(long, value_name = "DURATION", value_parser = deadline)]
    pub limit_latency: Option<Duration>,

    /// Follow a file of limits while the backup runs: TOML with limit-rate, limit-reads and limit-latency, each before the flag of its name
    #[arg(long, value_name = "FILE")]
    pub limits: Option<PathBuf>,
}

/// Arguments of `restore`.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The image; `-` is stdin. Or the manifest of a set
    #[arg(value_name = "IMAGE|-")]
    pub image: PathBuf,

    /// An image that this one continues; those beside it, of the same ending or of the
    /// name that they had then, are found without
    #[arg(long, value_name = "IMAGE")]
    pub parent: Vec<PathBuf>,

    /// A new file, an existing file or block device (see --force), or an NBD URI of an export that is overwritten. For a set: a
    /// directory, in which each volume gets a file of its name
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

impl LimitArgs {
    /// What a throttle makes of them.
    pub fn throttle_limits(&self) -> ThrottleLimits {
        ThrottleLimits {
            bytes_per_second: self.limit_rate.and_then(NonZero::new),
            reads_in_flight: self.limit_reads.map(usize::from).and_then(NonZero::new),
            host_latency: self.limit_latency,
        }
    }

    /// The file that they are followed in, if there is one.
    pub fn file(&self) -> Option<LimitsFile> {
        let path = self.limits.clone()?;
        Some(LimitsFile::new(path, self.throttle_limits()))
    }

    /// What holds at first.
    ///
    /// # Errors
    /// Those of [`LimitsFile::read`].
    pub fn throttle(&self) -> Result<Throttle> {
        let limits = match self.file() {
            Some(file) => file.read()?,
            None => self.throttle_limits(),
        };
        Ok(Throttle::new(limits))
    }
}

impl JobsArgs {
    /// The limits of a job as they are to be; `None` where none is to change.
    pub fn limits(&self, now: JobLimits) -> Option<JobLimits> {
        let milliseconds = |latency: Duration| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        let limits = JobLimits {
            rate: self.limit_rate.map_or(now.rate, NonZero::new),
            reads: self.limit_reads.map_or(now.reads, NonZero::new),
            latency_ms: self
                .limit_latency
                .map_or(now.latency_ms, |latency| NonZero::new(milliseconds(latency))),
        };
        let asked = self.limit_rate.is_some() || self.limit_reads.is_some() || self.limit_latency.is_some();
        asked.then_some(limits)
    }
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
    /// The image; `-` is stdin. Or the manifest of a set
    #[arg(value_name = "IMAGE|-")]
    pub image: PathBuf,

    /// An image that this one continues; those beside it, of the same ending or of the
    /// name that they had then, are found without
    #[arg(long, value_name = "IMAGE")]
    pub parent: Vec<PathBuf>,

    /// Then read the export that it was made from again, all of it through the host, and compare; exit with 6 where it differs. Where
    /// the server publishes a frozen image, it has to be the same
    #[arg(long, value_name = "NBD-URI")]
    pub against: Option<String>,

    /// Where certificates are, for nbds
    #[arg(long, value_name = "DIR", requires = "against")]
    pub tls_dir: Option<PathBuf>,

    /// End with one JSON object on stdout
    #[arg(long)]
    pub json: bool,
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

/// Arguments of `doctor`.
#[derive(clap::Args, Debug)]
pub struct DoctorArgs {
    /// A LUN, as for backup
    #[arg(long, value_name = "[ID=]PATH", required = true)]
    pub lun: Vec<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daemon`.
#[derive(clap::Args, Debug)]
pub struct DaemonArgs {
    /// The configuration, in TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// How a daemon is reached.
#[derive(clap::Args, Debug)]
pub struct DaemonAddress {
    /// Where it listens: unix:///PATH or a path, or https://HOST[:PORT] with certificates on both sides
    #[arg(long, value_name = "URL", default_value = "/run/proxy-client/control")]
    pub daemon: String,

    /// Where certificates are, for https: ca-cert.pem, client-cert.pem and client-key.pem
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
}

/// Arguments of `jobs`.
#[derive(clap::Args, Debug)]
pub struct JobsArgs {
    /// One job, by its number
    #[arg(value_name = "ID")]
    pub id: Option<u64>,

    /// Print it again every second, until it has come to its end
    #[arg(long, requires = "id")]
    pub watch: bool,

    /// End it; nothing is left of it
    #[arg(long, requires = "id", conflicts_with = "watch")]
    pub cancel: bool,

    /// From now on read no more than this in a second, from disks and host together; 0 takes the limit away. With K, M, G or T: powers
    /// of 1024
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "id", conflicts_with = "cancel")]
    pub limit_rate: Option<u64>,

    /// From now on most reads in flight, from disks and host together; 0 takes the limit away
    #[arg(long, value_name = "N", requires = "id", conflicts_with = "cancel")]
    pub limit_reads: Option<u16>,

    /// From now on, while the host takes longer than this to answer about its map, read one at a time, with pauses; 0 takes the limit
    /// away
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "id", conflicts_with = "cancel")]
    pub limit_latency: Option<Duration>,

    /// Where the daemon is
    #[command(flatten)]
    pub at: DaemonAddress,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    /// Where the daemon is
    #[command(flatten)]
    pub at: DaemonAddress,

    /// Show it again every second, with the pace of each job, until it is interrupted; also when the daemon is away for a while
    #[arg(long)]
    pub watch: bool,

    /// Print one JSON object; with --watch one for each look, on a line
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

/// Each costs a sync.
fn checkpoint_bytes(text: &str) -> Result<u64, String> {
    match parse_size(text).map_err(|error| error.to_string())? {
        size if size >= 1 << 20 => Ok(size),
        _ => Err("there is 1M between checkpoints at least".into()),
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
