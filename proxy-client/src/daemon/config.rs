//! The configuration file.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_export::config::parse_size;
use nbd_export::proto::ExportName;
use nbd_export::proxy::JobRequest;
use nbd_export::server::{AllowLists, Allowed, Client};
use nbd_export::uri::NbdUri;
use serde::Deserialize;
use volmap::range::ByteRange;

use crate::config::{LunArgument, SpoolArgument, nbd_uri};
use crate::error::{Error, ErrorKind, Result};

/// Under which operators are in the allow lists; no host is called so.
const OPERATORS: &str = "";

/// What the daemon is to do.
#[derive(Debug)]
pub(super) struct DaemonConfig {
    /// Where images go.
    pub(super) repository: PathBuf,
    /// The queue.
    pub(super) state: PathBuf,
    /// Jobs at a time.
    pub(super) jobs: usize,
    /// Jobs at a time that read one LUN.
    pub(super) jobs_per_lun: usize,
    /// Jobs that may wait.
    pub(super) queue: usize,
    /// Whether images are read again.
    pub(super) verify: bool,
    /// Bytes of the image between two checkpoints of an image.
    pub(super) checkpoint_every: u64,
    /// Where what a job has read waits for a slow repository.
    pub(super) spool: Option<SpoolArgument>,
    /// How often a job is begun whose host is lost.
    pub(super) attempts: u32,
    /// What running jobs are given at the end.
    pub(super) stop_within: Duration,
    /// The Unix socket, where one is wanted.
    pub(super) socket: Option<PathBuf>,
    /// TCP addresses, which need certificates.
    pub(super) tcp: Vec<SocketAddr>,
    /// Where these are.
    pub(super) tls_dir: Option<PathBuf>,
    pub(super) luns: BTreeMap<String, LunArgument>,
    pub(super) hosts: BTreeMap<String, HostConfig>,
    access: AllowLists,
}

/// A host, and what may be read for it.
#[derive(Clone, Debug)]
pub(super) struct HostConfig {
    uri: NbdUri,
    /// LUNs by name, with the ranges that are allowed; all, where there are none.
    pub(super) luns: Vec<(String, Option<Vec<ByteRange>>)>,
    /// The LUNs are used on this machine by the host itself.
    pub(super) is_this_machine: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    repository: PathBuf,
    state: Option<PathBuf>,
    #[serde(default = "two")]
    jobs: usize,
    #[serde(default = "one")]
    jobs_per_lun: usize,
    #[serde(default = "thousand")]
    queue: usize,
    #[serde(default = "yes")]
    verify: bool,
    #[serde(default = "three")]
    attempts: u32,
    #[serde(default = "a_gibibyte")]
    checkpoint_every: String,
    spool: Option<String>,
    #[serde(default = "half_a_minute")]
    stop_within: u64,
    #[serde(default = "local")]
    operators: Vec<String>,
    #[serde(default)]
    listen: Listen,
    #[serde(default)]
    lun: BTreeMap<String, LunTable>,
    #[serde(default)]
    host: BTreeMap<String, HostTable>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Listen {
    socket: Option<PathBuf>,
    #[serde(default)]
    tcp: Vec<String>,
    tls_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LunTable {
    path: PathBuf,
    identity: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HostTable {
    uri: String,
    tls_dir: Option<PathBuf>,
    #[serde(default = "local")]
    clients: Vec<String>,
    #[serde(default)]
    luns: Vec<AllowedLun>,
    #[serde(default)]
    is_this_machine: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AllowedLun {
    Whole(String),
    #[serde(rename_all = "kebab-case")]
    Parts {
        lun: String,
        ranges: Vec<String>,
    },
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn three() -> u32 {
    3
}

fn thousand() -> usize {
    1000
}

fn a_gibibyte() -> String {
    "1G".to_owned()
}

fn half_a_minute() -> u64 {
    30
}

fn yes() -> bool {
    true
}

fn local() -> Vec<String> {
    vec!["unix".to_owned()]
}

impl DaemonConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], or [`ErrorKind::Usage`] for what cannot be meant.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::io("reading the configuration", path, error))?;
        Self::parse(&text).map_err(|error| error.at_path(path))
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| usage(error.to_string()))?;
        if file.jobs == 0 || file.jobs_per_lun == 0 || file.queue == 0 || file.attempts == 0 {
            return Err(usage("jobs, jobs-per-lun, queue and attempts are at least 1"));
        }
        if !file.repository.is_absolute() {
            return Err(usage(
                "repository: an absolute path, or it depends on where the daemon was started",
            ));
        }
        let checkpoint_every = parse_size(&file.checkpoint_every)
            .map_err(|error| usage(format!("checkpoint-every: {error}")))?;
        let spool = file.spool.as_deref().map(SpoolArgument::parse).transpose()?;
        if let Some(spool) = &spool {
            if !spool.directory.is_absolute() {
                return Err(usage(
                    "spool: an absolute path, or it depends on where the daemon was started",
                ));
            }
            if spool.size.is_none() {
                return Err(usage(
                    "spool: jobs run side by side, so say how much each may have: DIR,size=SIZE",
                ));
            }
        }
        let state = match file.state {
            Some(state) => state,
            None => state_directory()?.join("jobs.redb"),
        };
        let mut access = AllowLists::default();
        access.allow(OPERATORS, allowed(&file.operators));
        let mut luns = BTreeMap::new();
        for (name, table) in file.lun {
            let identity = table
                .identity
                .as_deref()
                .map(volmap::identity::Identity::from_operator);
            let identity = identity
                .transpose()
                .map_err(|error| usage(format!("lun.{name}: {error}")))?;
            luns.insert(
                name,
                LunArgument {
                    identity,
                    path: table.path,
                    allowed: Vec::new(),
                },
            );
        }
        let mut hosts = BTreeMap::new();
        for (name, table) in file.host {
            if !is_file_name(&name) {
                return Err(usage(format!(
                    "host.{name}: images are filed under it: letters, digits, '.', '_', '-', and no dot at the beginning"
                )));
            }
            access.allow(&name, allowed(&table.clients));
            let host =
                HostConfig::new(table, &luns).map_err(|error| error.of_volume(format!("host.{name}")))?;
            hosts.insert(name, host);
        }
        let tcp = addresses(&file.listen.tcp)?;
        if !tcp.is_empty() && file.listen.tls_dir.is_none() {
            return Err(usage(
                "listen.tcp: certificates are needed on both sides: say where they are, with listen.tls-dir",
            ));
        }
        Ok(Self {
            repository: file.repository,
            state,
            jobs: file.jobs,
            jobs_per_lun: file.jobs_per_lun,
            queue: file.queue,
            verify: file.verify,
            checkpoint_every,
            spool,
            attempts: file.attempts,
            stop_within: Duration::from_secs(file.stop_within),
            socket: file.listen.socket,
            tcp,
            tls_dir: file.listen.tls_dir,
            luns,
            hosts,
            access,
        })
    }

    /// Whether a client may have backups made of a host, and see them.
    pub(super) fn is_for(&self, host: &str, client: &Client) -> bool {
        host != OPERATORS
            && self.hosts.contains_key(host)
            && (self.access.admit(host, client) || self.is_operator(client))
    }

    /// Whether a client may see everything.
    pub(super) fn is_operator(&self, client: &Client) -> bool {
        self.access.admit(OPERATORS, client)
    }

    /// What is wrong with a request, whoever makes it.
    pub(super) fn check(&self, request: &JobRequest) -> Result<()> {
        if !is_file_name(&request.volume) {
            return Err(usage(
                "volume: letters, digits, '.', '_' and '-', at most 100 of them, and no dot at the beginning",
            ));
        }
        ExportName::new(&request.export).map_err(|error| usage(format!("export: {error}")))?;
        if request.export.is_empty() {
            return Err(usage("export: a name"));
        }
        let percentages = [
            ("require-direct", request.require_direct),
            ("audit", request.audit),
        ];
        for (name, value) in percentages {
            if value.is_some_and(|value| !(0.0..=100.0).contains(&value)) {
                return Err(usage(format!("{name}: a number from 0 to 100")));
            }
        }
        Ok(())
    }
}

impl HostConfig {
    fn new(table: HostTable, luns: &BTreeMap<String, LunArgument>) -> Result<Self> {
        let uri = nbd_uri(&table.uri, table.tls_dir.as_deref())?;
        if !uri.export.as_str().is_empty() {
            return Err(usage("uri: the server alone; jobs name the exports"));
        }
        let mut allowed = Vec::new();
        for lun in table.luns {
            let (name, ranges) = match lun {
                AllowedLun::Whole(name) => (name, None),
                AllowedLun::Parts { lun, ranges } => {
                    let ranges = ranges.iter().map(|text| range(text)).collect::<Result<_>>()?;
                    (lun, Some(ranges))
                }
            };
            if !luns.contains_key(&name) {
                return Err(usage(format!("luns: there is no [lun.{name}]")));
            }
            if allowed.iter().any(|(known, _)| *known == name) {
                return Err(usage(format!("luns: {name} is listed twice")));
            }
            allowed.push((name, ranges));
        }
        Ok(Self {
            uri,
            luns: allowed,
            is_this_machine: table.is_this_machine,
        })
    }

    /// The URI of an export of this host.
    pub(super) fn export(&self, name: &str) -> Result<NbdUri> {
        let export = ExportName::new(name).map_err(|error| usage(format!("export: {error}")))?;
        Ok(NbdUri {
            export,
            ..self.uri.clone()
        })
    }
}

/// Whether a name may become a part of a path: one name, visible, and not too long with what is added to it.
pub(super) fn is_file_name(name: &str) -> bool {
    let shown = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(shown)
}

/// `OFFSET..END`, with units.
fn range(text: &str) -> Result<ByteRange> {
    let malformed = || usage(format!("ranges: {text}: write OFFSET..END, as \"0..10G\""));
    let (start, end) = text.split_once("..").ok_or_else(malformed)?;
    let size = |text: &str| parse_size(text.trim()).map_err(|_| malformed());
    let (start, end) = (if start.trim() == "0" { 0 } else { size(start)? }, size(end)?);
    ByteRange::from_bounds(start, end).ok_or_else(malformed)
}

fn allowed(entries: &[String]) -> Vec<Allowed> {
    entries
        .iter()
        .map(|entry| {
            let Ok(allowed) = entry.parse();
            allowed
        })
        .collect()
}

fn addresses(texts: &[String]) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for text in texts {
        let found = text
            .to_socket_addrs()
            .map_err(|error| usage(format!("listen.tcp: {text}: {error}")))?;
        addresses.extend(found);
    }
    Ok(addresses)
}

/// As systemd says (StateDirectory=).
fn state_directory() -> Result<PathBuf> {
    let first = std::env::var_os("STATE_DIRECTORY").and_then(|paths| {
        paths
            .to_str()
            .and_then(|paths| paths.split(':').next())
            .map(PathBuf::from)
    });
    first
        .filter(|path| path.is_absolute())
        .ok_or_else(|| usage("state: a path for the queue, or StateDirectory= in the unit"))
}

fn usage(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        repository = "/srv/backup"
        state = "/var/lib/p/jobs.redb"
        operators = ["unix", "ops"]
        [listen]
        socket = "/run/p"
        [lun.a]
        path = "/dev/a"
        identity = "naa:1"
        [lun.b]
        path = "/dev/b"
        [host.web]
        uri = "nbds://web"
        tls-dir = "/pki"
        clients = ["web.example"]
        luns = ["a", { lun = "b", ranges = ["0..1M", "2M..1G"] }]
    "#;

    fn client(names: &[&str]) -> Client {
        Client {
            audience: nbd_export::server::Audience { writable: false },
            address: names.first().map(|_| [10, 0, 0, 1].into()),
            names: names.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_file_says_what_it_says() {
        let config = DaemonConfig::parse(GOOD).unwrap();
        assert_eq!((config.jobs, config.jobs_per_lun, config.verify), (2, 1, true));
        let web = &config.hosts["web"];
        assert_eq!(web.luns[0], ("a".to_owned(), None));
        assert_eq!(web.luns[1].1.as_ref().unwrap().len(), 2);
        let uri = web.export("vm@1").unwrap();
        assert_eq!(uri.to_string(), "nbds://web:10809/vm@1");
        assert_eq!(uri.tls.unwrap().directory(), Some(Path::new("/pki")));
    }

    #[test]
    fn hosts_are_for_their_clients_and_for_operators() {
        let config = DaemonConfig::parse(GOOD).unwrap();
        let (web, ops, other, local) = (
            client(&["web.example"]),
            client(&["ops"]),
            client(&["x"]),
            client(&[]),
        );
        assert!(config.is_for("web", &web) && !config.is_operator(&web));
        assert!(config.is_for("web", &ops) && config.is_operator(&ops));
        assert!(!config.is_for("web", &other) && !config.is_operator(&other));
        assert!(config.is_for("web", &local) && config.is_operator(&local));
        assert!(!config.is_for("nosuch", &ops) && !config.is_for("", &ops));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (from, to) in [
            ("repository = \"/srv/backup\"", "repository = \"backup\""),
            ("[listen]", "[listen]\ntcp = [\"127.0.0.1:1\"]"),
            ("[listen]", "[listen]\ntpc = []"),
            ("luns = [\"a\"", "luns = [\"c\""),
            ("luns = [\"a\"", "luns = [\"b\""),
            ("\"0..1M\"", "\"1M..0\""),
            ("\"0..1M\"", "\"1M\""),
            ("nbds://web", "nbds://web/vm"),
            ("nbds://web", "nbd://web"),
            ("[host.web]", "[host.\"../web\"]"),
            ("[host.web]", "[host.\".web\"]"),
            ("state =", "jobs = 0\nstate ="),
            ("state =", "checkpoint-every = \"often\"\nstate ="),
            ("identity = \"naa:1\"", "identity = \"\""),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = DaemonConfig::parse(&GOOD.replace(from, to))
                .map(drop)
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{to}");
        }
    }

    #[test]
    fn names_are_not_paths() {
        for good in ["vm", "vm-1.img", "A_b"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".vm",
            "a/b",
            "../x",
            "a b",
            "a\0",
            "ä",
            &"x".repeat(101),
        ] {
            assert!(!is_file_name(bad), "{bad}");
        }
        assert!(is_file_name(&"x".repeat(100)));
    }
}
