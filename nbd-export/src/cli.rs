//! The command line: definitions only. [`crate::config`] makes sense of what was written.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use volmap::freeze::SnapshotSize;

use crate::config::{Hooks, parse_snapshot_size};
use crate::generate::GenerateArgs;
use crate::host::KEPT_MAX;
use crate::server::limits::{CONNECTIONS, CONNECTIONS_MAX, HANDSHAKE_DEADLINE};

/// Publishes frozen images of volumes, with the map of where their bytes lie on the shared disk, over NBD.
#[derive(Debug, Parser)]
#[command(name = "nbd-export", version, max_term_width = 100)]
pub struct Cli {
    /// How errors are written to standard error.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub error_format: ErrorFormat,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Arguments of `serve` that a file takes the place of: all that say what is served, and how.
const SAID_IN_THE_FILE: &[&str] = &[
    "volumes",
    "origin",
    "copy_area",
    "writable",
    "socket",
    "listen",
    "insecure_plaintext",
    "origin_listen",
    "tls_dir",
    "allow",
    "tls",
    "set",
    "volume",
    "files",
    "filesystem",
    "set_origin",
    "pre_freeze",
    "post_freeze",
    "post_thaw",
    "hook_timeout",
    "state_dir",
    "freeze",
    "snapshot_size",
    "keep_for_incremental",
    "no_freeze",
    "clone_dir",
    "tag",
    "identity",
    "assume_exclusive",
    "single",
    "max_connections",
    "handshake_timeout",
    "control",
];

/// How errors are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ErrorFormat {
    /// A sentence.
    Text,
    /// One JSON object with kind, message and exit_code.
    Json,
}

/// The verbs; each has a file of its own in `command`.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in the life of a process")]
pub enum Verb {
    /// Serve volumes as frozen images, origins read-write under copy-before-write, and plain files and devices read-write.
    Serve(ServeArgs),
    /// Freeze a volume, an origin or the set that a running agent serves; prints the NBD URIs of the frozen images.
    Freeze(FreezeArgs),
    /// Freeze a volume, an origin or the set that a running agent serves, have a proxy's daemon back it up, and thaw.
    Backup(BackupArgs),
    /// What backup --detach leaves behind, to wait for the job.
    #[command(hide = true)]
    WatchBackup(WatchBackupArgs),
    /// End a frozen image, or those of a frozen set, and remove the exports.
    Thaw(ThawArgs),
    /// List volumes, origins, tags and frozen images of a running agent.
    List(ListArgs),
    /// Find and show what killed agents left behind: clones, immutable flags on quiesced files, snapshots of LVM and metadata snapshots
    /// of thin pools. With --yes they are removed.
    Cleanup(CleanupArgs),
    /// What an agent starts for itself, to thaw file systems and run hooks whatever becomes of it.
    #[command(hide = true)]
    Guard,
    /// Show where every extent of a volume lies, down to the disk.
    Map(MapArgs),
    /// Show which ways to freeze fit a volume, how strong they are, and why the others do not.
    Probe(ProbeArgs),
    /// Write manual pages or shell completions.
    Generate(GenerateArgs),
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Serve what this file says (TOML), and that alone: of the other options only --ready-fd goes with it.
    #[arg(long, value_name = "FILE", conflicts_with_all = SAID_IN_THE_FILE)]
    pub config: Option<PathBuf>,
    /// A volume: a file, with whatever bytes it holds (of a qcow2 file the container, not the disk in it), or a block device. NAME is taken from
    /// the file name if it is not given.
    #[arg(value_name = "[NAME=]VOLUME")]
    pub volumes: Vec<String>,
    /// Serve a volume read-write under NAME, with copy-before-write; needs a --copy-area each.
    #[arg(long, value_name = "NAME=VOLUME")]
    pub origin: Vec<String>,
    /// Where old data is kept for the origin at the same position on the command line: a file or a block device. SIZE takes K, M,
    /// G, T. When it is full, frozen images end, the oldest first (break); or writers are held until one is thawed, for 60 or so
    /// many SECONDS, and then frozen images end (hold).
    #[arg(long, value_name = "PATH[,size=SIZE][,on-full=break|hold[:SECONDS]]")]
    pub copy_area: Vec<String>,
    /// Serve a file or block device read-write under NAME, as it is; nobody else may use it meanwhile.
    #[arg(long, value_name = "NAME=PATH")]
    pub writable: Vec<String>,
    /// Listen on a Unix socket (all exports). With tls=off it goes without TLS where --tls-dir is given: only this user
    /// and root get in.
    #[arg(long, value_name = "PATH[,tls=off]")]
    pub socket: Vec<PathBuf>,
    /// Listen on TCP (read-only exports).
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,
    /// Allow listening beyond this machine without encryption.
    #[arg(long)]
    pub insecure_plaintext: bool,
    /// Listen on TCP (all exports, writable ones too).
    #[arg(long, value_name = "ADDR:PORT")]
    pub origin_listen: Vec<String>,
    /// Encrypt, and let only clients in that have a certificate of the authority in this directory, which holds ca-cert.pem,
    /// server-cert.pem and server-key.pem, and ca-crl.pem where certificates were revoked.
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Let only these clients have a volume, with its frozen images and its tag: a common name or DNS name of their certificate, an
    /// address, a network as ADDRESS/BITS, or unix for the clients of Unix sockets. To others the volume is unknown.
    /// A name with a comma cannot be listed.
    #[arg(long, value_name = "EXPORT=NAME,...")]
    pub allow: Vec<String>,
    /// Whether every listener demands TLS; require if --tls-dir is given.
    #[arg(long, value_enum, value_name = "MODE")]
    pub tls: Option<TlsMode>,
    /// Freeze volumes together, at one instant, as a set of this name; each has an export of its own.
    #[arg(long, value_name = "NAME")]
    pub set: Option<String>,
    /// Volumes of the set: image files or block devices.
    #[arg(long, value_name = "[NAME=]PATH", num_args = 1.., requires = "set")]
    pub volume: Vec<String>,
    /// Files of the set, by name or pattern (*, ? and [abc]; hidden files by name alone), as they are found at start.
    #[arg(long, value_name = "GLOB", num_args = 1.., requires = "set")]
    pub files: Vec<String>,
    /// Mounted file systems of the set: the block devices that they lie on, without free space where that is known exactly.
    #[arg(long, value_name = "MOUNTPOINT", num_args = 1.., requires = "set")]
    pub filesystem: Vec<PathBuf>,
    /// Origins of the set, by the names that --origin gives them. A set with origins is not frozen at start.
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "set")]
    pub set_origin: Vec<String>,
    /// Command that runs before every freeze and brings the data into order (sh -c). Where it fails nothing is frozen.
    #[arg(long, value_name = "CMD")]
    pub pre_freeze: Option<String>,
    /// Command that runs once all is frozen, and lets writers go on.
    #[arg(long, value_name = "CMD")]
    pub post_freeze: Option<String>,
    /// Command that runs when the frozen images of a freeze are ended, and after a freeze that failed, also if the agent was killed.
    #[arg(long, value_name = "CMD")]
    pub post_thaw: Option<String>,
    /// Time that each of these commands has; then it is killed, with all that it started.
    #[arg(long, value_name = "SECONDS", default_value_t = Hooks::TIMEOUT.as_secs(), value_parser = RangedU64ValueParser::<u64>::new().range(1..=3600))]
    pub hook_timeout: u64,
    /// Where it is written down what a crash would leave behind, for cleanup; $STATE_DIRECTORY, /var/lib/nbd-export for root,
    /// or nbd-export in $XDG_STATE_HOME if not given.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How volumes are frozen.
    #[arg(long, value_enum, value_name = "METHOD", default_value = "auto")]
    pub freeze: FreezeMethod,
    /// How large the snapshot of a logical volume is: bytes, K, M, G, T, or how much of the volume it can keep, as 15%; 10% if not given,
    /// at least 64M. It keeps what is overwritten while it lives; when it is full, the frozen image is gone.
    #[arg(long, value_name = "SIZE|PERCENT%")]
    pub snapshot_size: Option<String>,
    /// Keep frozen images when they are thawed, so that later ones of their volume know what changed since: the newest N of each, 1 if not
    /// given. Thaw a frozen image when its backup has committed; what was kept before it goes then. Where the backup failed, thaw --drop.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "1",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=KEPT_MAX as u64))]
    pub keep_for_incremental: Option<usize>,
    /// Do not freeze volumes at start, only on request.
    #[arg(long)]
    pub no_freeze: bool,
    /// Where reflink clones are kept; the volume's own directory if not given.
    #[arg(long, value_name = "DIR")]
    pub clone_dir: Option<PathBuf>,
    /// Serve a small file on the same disk as export NAME.tag, by which a proxy proves that it has the right disk.
    #[arg(long, value_name = "NAME=PATH")]
    pub tag: Vec<String>,
    /// Declare that a file or block device is the disk with this identity (TYPE:VALUE, or a plain name).
    #[arg(long, value_name = "PATH=ID")]
    pub identity: Vec<String>,
    /// Trust that nobody changes a volume that nothing can watch (the frozen image is then marked unattested).
    #[arg(long)]
    pub assume_exclusive: bool,
    /// Serve one client at standard input and output (one Unix socket, or two pipes), all exports, and end with it. Nothing is
    /// printed there, and the log goes nowhere if standard error is the same. TCP connections are for --listen.
    #[arg(long, conflicts_with_all = ["socket", "listen", "origin_listen"])]
    pub single: bool,
    /// Write a newline to descriptor N, and close it, when every export is opened and checked.
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<i32>,
    /// Most connections that are served at a time; one address (of IPv6: one /64), or one local process, gets three quarters of
    /// them. Of fewer than four, it gets all.
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=CONNECTIONS_MAX as u64))]
    pub max_connections: usize,
    /// Time that a client has to come to an export.
    #[arg(long, value_name = "SECONDS", default_value_t = HANDSHAKE_DEADLINE.as_secs(),
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=3600))]
    pub handshake_timeout: u64,
    /// The control socket.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// Whether there is TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TlsMode {
    /// Nothing is told before TLS.
    Require,
    /// There is none.
    Off,
}

/// How volumes are frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FreezeMethod {
    /// The strongest that fits.
    Auto,
    /// A reflink clone (XFS, btrfs).
    Reflink,
    /// Writers are kept out for as long as the frozen image lives.
    Quiesce,
    /// A classic snapshot of a logical volume, removed at the thaw.
    LvmSnapshot,
    /// A thin snapshot of a logical volume in a thin pool, removed at the thaw.
    LvmThin,
    /// The volume does not change: a snapshot, or a detached or read-only device.
    Static,
}

/// Arguments of `freeze`.
#[derive(Debug, Args)]
pub struct FreezeArgs {
    /// The volume, origin or set, by the name that it is served under.
    pub name: String,
    /// The frozen image is exported as NAME@ID, each one of a set; drawn if not given.
    #[arg(long = "as", value_name = "ID")]
    pub id: Option<String>,
    /// How to reach the agent, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// How a proxy's daemon is reached, and how long it may be out of reach.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    /// The proxy's daemon: https://HOST[:PORT], or unix:///PATH on this machine.
    #[arg(long, value_name = "URL")]
    pub proxy: String,
    /// Where certificates are, for https: ca-cert.pem, client-cert.pem and client-key.pem.
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// How long the frozen image is kept without a word of the proxy, or of this command. It is renewed while both go on.
    #[arg(long, value_name = "SECONDS", default_value_t = 900, value_parser = RangedU64ValueParser::<u64>::new().range(1..=86_400))]
    pub hold: u64,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The volume, origin or set, by the name that it is served under.
    pub name: String,
    /// The proxy.
    #[command(flatten)]
    pub at: ProxyArgs,
    /// What the proxy's configuration calls this host; the name of this machine if not given.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// End with 4 unless at least this share of the data, in percent, was read from the LUN. The image is good all the same.
    #[arg(long, value_name = "PERCENT")]
    pub require_direct: Option<f64>,
    /// Do not wait: a process of its own does, and thaws.
    #[arg(long)]
    pub detach: bool,
    /// How to reach the agent, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `watch-backup`.
#[derive(Debug, Args)]
pub struct WatchBackupArgs {
    /// The proxy.
    #[command(flatten)]
    pub at: ProxyArgs,
    /// What is to be thawed.
    #[arg(long)]
    pub frozen: String,
    /// The jobs.
    #[arg(long)]
    pub job: Vec<u64>,
    /// The control socket of the agent.
    #[arg(long)]
    pub control: Option<PathBuf>,
}

/// Arguments of `thaw`.
#[derive(Debug, Args)]
pub struct ThawArgs {
    /// The frozen image, by the name of its export or its UUID, or the frozen set: NAME@ID, or NAME for the one made at start.
    #[arg(value_name = "NAME@ID")]
    pub export: String,
    /// Do not keep it for incrementals. One that is kept already ends too, if it is given by its UUID.
    #[arg(long)]
    pub drop: bool,
    /// How to reach the agent, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to reach the agent, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What the verbs that talk to a running agent share.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The control socket of the agent.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Directories to look for clones in that were not written down anywhere.
    #[arg(value_name = "DIR")]
    pub directories: Vec<PathBuf>,
    /// Remove what was found.
    #[arg(long)]
    pub yes: bool,
    /// The state directory of the agents; as for serve if not given.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// The volume: an image file or block device.
    pub volume: PathBuf,
    /// Declare that a file or block device is the disk with this identity (TYPE:VALUE, or a plain name).
    #[arg(long, value_name = "PATH=ID")]
    pub identity: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Print a picture (SVG): the volume's line above, the line of each store below, and what lies where joined between them.
    #[arg(long, conflicts_with = "json")]
    pub svg: bool,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The volume: an image file or block device.
    pub volume: PathBuf,
    /// Where reflink clones would be kept; the volume's own directory if not given.
    #[arg(long, value_name = "DIR")]
    pub clone_dir: Option<PathBuf>,
    /// How large the snapshot of a logical volume would be, as for serve.
    #[arg(long, value_name = "SIZE|PERCENT%", value_parser = parse_snapshot_size)]
    pub snapshot_size: Option<SnapshotSize>,
    /// As if trusted that nobody changes a volume that nothing can watch.
    #[arg(long)]
    pub assume_exclusive: bool,
    /// Declare that a file or block device is the disk with this identity (TYPE:VALUE, or a plain name).
    #[arg(long, value_name = "PATH=ID")]
    pub identity: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn nothing_that_a_file_says_is_said_beside_it() {
        let cli = Cli::command();
        let serve = cli.find_subcommand("serve").unwrap();
        let all: BTreeSet<&str> = serve.get_arguments().map(|arg| arg.get_id().as_str()).collect();
        let beside = all.iter().filter(|name| !SAID_IN_THE_FILE.contains(name));
        let beside: Vec<&&str> = beside
            .filter(|name| !["help", "version"].contains(name))
            .collect();
        assert_eq!(beside, [&"config", &"ready_fd"]);
        let parsed =
            |more: &[&str]| Cli::try_parse_from([&["nbd-export", "serve", "--config", "/c"], more].concat());
        assert!(parsed(&["--ready-fd", "3"]).is_ok());
        for mixed in [
            &["vm=/v"][..],
            &["--listen", "[::1]:0"],
            &["--hook-timeout", "30"],
            &["--no-freeze"],
        ] {
            assert!(parsed(mixed).is_err(), "{mixed:?}");
        }
    }
}
