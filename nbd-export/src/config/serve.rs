//! What `serve` is to do, validated.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use volmap::cow::CopyAreaSpec;
use volmap::freeze::SnapshotSize;
use volmap::identity::Identity;

use super::arguments::{VolumeName, copy_area, identities, named, socket, volume};
use super::endpoint::{control_path, reachable, runtime_path, tcp};
use super::hooks::Hooks;
use super::inherited::{PassedAddress, PassedSocket, Stdio};
use super::set::SetConfig;
use super::size::parse_snapshot_size;
use super::state_dir::{StateDir, state_dir};
use crate::cli::{FreezeMethod, ServeArgs, TlsMode};
use crate::error::{Error, ErrorKind};
use crate::server::limits::Limits;
use crate::server::{AllowLists, Allowed};

/// Name of the NBD socket in the runtime directory when no listener is given.
const SOCKET_NAME: &str = "nbd-export.sock";

/// A volume that is frozen and served read-only, or served read-write as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeConfig {
    /// What it is called.
    pub name: VolumeName,
    /// Where it is.
    pub path: PathBuf,
}

/// A volume that is served read-write under copy-before-write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OriginConfig {
    /// What it is called.
    pub name: VolumeName,
    /// Where it is.
    pub path: PathBuf,
    /// Where its old data is kept, and what is done when there is no room for it.
    pub copy_area: CopyAreaSpec,
}

/// A tag file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagConfig {
    /// The volume or origin whose disk it proves.
    pub name: VolumeName,
    /// Where it is.
    pub path: PathBuf,
}

/// Where to listen, and for whom.
#[derive(Clone, Debug)]
pub enum Listener {
    /// A Unix socket; offers everything.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Whether it goes without TLS where other listeners have it.
        plaintext: bool,
    },
    /// A TCP address.
    Tcp {
        /// The address; port 0 draws one.
        address: SocketAddr,
        /// Whether writable exports are offered there.
        writable: bool,
    },
    /// A socket that a service manager listens on; offers everything if it is a Unix socket.
    Passed(Arc<PassedSocket>),
    /// The one client at standard input and output, who gets everything: whoever starts an agent may do what it may.
    Single(Arc<Stdio>),
}

impl Listener {
    /// Whether it offers exports that can be written.
    pub fn offers_writable(&self) -> bool {
        match self {
            Self::Unix { .. } | Self::Single(_) => true,
            Self::Tcp { writable, .. } => *writable,
            Self::Passed(socket) => matches!(socket.address, PassedAddress::Unix(_)),
        }
    }

    /// Why it may be open to users whom nobody chose, where its mode is not ours to set.
    fn lets_all_users_in(&self) -> Option<String> {
        match self {
            Self::Passed(socket) => socket.address.lets_all_users_in(),
            _ => None,
        }
    }
}

/// The control socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlPath {
    /// Its path.
    pub path: PathBuf,
    /// Whether the operator asked for this very path, so that going on without it would be wrong.
    pub given: bool,
}

/// What `serve` is to do.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Volumes to freeze.
    pub volumes: Vec<VolumeConfig>,
    /// Whether they are frozen at start.
    pub freeze_at_start: bool,
    /// How they are frozen.
    pub method: FreezeMethod,
    /// Where reflink clones are kept.
    pub clone_dir: Option<PathBuf>,
    /// How large snapshots of logical volumes are, where somebody said.
    pub snapshot_size: Option<SnapshotSize>,
    /// Whether the operator vouches for volumes that nothing can watch.
    pub assume_exclusive: bool,
    /// Volumes to serve read-write.
    pub origins: Vec<OriginConfig>,
    /// Volumes to serve read-write as they are.
    pub writables: Vec<VolumeConfig>,
    /// Tag files.
    pub tags: Vec<TagConfig>,
    /// Files and devices that stand for disks.
    pub identities: Vec<(PathBuf, Identity)>,
    /// Where to listen, at least one.
    pub listeners: Vec<Listener>,
    /// What clients can hold of the server.
    pub limits: Limits,
    /// Who may have which volume.
    pub access: AllowLists,
    /// Where the certificates are, if nothing is told outside TLS.
    pub tls_directory: Option<PathBuf>,
    /// The control socket, if there is to be one.
    pub control: Option<ControlPath>,
    /// Volumes to freeze together.
    pub set: Option<SetConfig>,
    /// What runs around every freeze.
    pub hooks: Hooks,
    /// Where it is written down what a crash would leave behind.
    pub state_dir: StateDir,
}

impl TryFrom<&ServeArgs> for ServeConfig {
    type Error = Error;

    /// What the arguments alone say.
    fn try_from(args: &ServeArgs) -> Result<Self, Error> {
        Self::new(args, Vec::new(), None)
    }
}

impl ServeConfig {
    /// What the arguments say, with the sockets that were passed beside them.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn new(args: &ServeArgs, passed: Vec<PassedSocket>, stdio: Option<Stdio>) -> Result<Self, Error> {
        let volumes = args
            .volumes
            .iter()
            .map(|argument| volume(argument).map(|(name, path)| VolumeConfig { name, path }))
            .collect::<Result<Vec<_>, _>>()?;
        let writables = args
            .writable
            .iter()
            .map(|argument| named("--writable", argument).map(|(name, path)| VolumeConfig { name, path }))
            .collect::<Result<Vec<_>, _>>()?;
        let tags = args
            .tag
            .iter()
            .map(|argument| named("--tag", argument).map(|(name, path)| TagConfig { name, path }))
            .collect::<Result<Vec<_>, _>>()?;
        let config = Self {
            volumes,
            freeze_at_start: !args.no_freeze,
            method: args.freeze,
            clone_dir: args.clone_dir.clone(),
            snapshot_size: snapshot_size(args)?,
            assume_exclusive: args.assume_exclusive,
            origins: origins(args)?,
            writables,
            tags,
            identities: identities(&args.identity)?,
            listeners: listeners(args, passed, stdio)?,
            limits: Limits {
                connections: args.max_connections,
                handshake_deadline: Duration::from_secs(args.handshake_timeout),
            },
            access: allow_lists(args)?,
            tls_directory: tls_directory(args)?,
            // Agents of one client each would have no other name for it, and nobody asks them anything.
            control: (args.control.is_some() || !args.single).then(|| ControlPath {
                path: control_path(args.control.as_deref()),
                given: args.control.is_some(),
            }),
            set: SetConfig::new(args)?,
            hooks: Hooks::new(args),
            state_dir: state_dir(args.state_dir.as_deref()),
        };
        config.check()?;
        Ok(config)
    }

    /// What no argument shows alone.
    fn check(&self) -> Result<(), Error> {
        let in_set = || self.set.iter().flat_map(|set| &set.members);
        let volumes = || self.volumes.iter().chain(in_set());
        if volumes().next().is_none() && self.origins.is_empty() && self.writables.is_empty() {
            return Err(usage(
                "there is nothing to serve: give a VOLUME, a --set, an --origin or a --writable",
            ));
        }
        let names: Vec<&VolumeName> = volumes()
            .map(|v| &v.name)
            .chain(self.origins.iter().map(|o| &o.name))
            .chain(self.writables.iter().map(|w| &w.name))
            .collect();
        let mut exports = BTreeSet::new();
        let tag_exports = self.tags.iter().map(|t| format!("{}.tag", t.name));
        for export in names.iter().map(ToString::to_string).chain(tag_exports) {
            if exports.contains(&export) {
                return Err(usage(format!(
                    "two exports would be called {export}: give NAME=VOLUME to tell them apart"
                )));
            }
            exports.insert(export);
        }
        if let Some(set) = &self.set
            && names.contains(&&set.name)
        {
            return Err(usage(format!(
                "--set {}: a volume is called so, too, and one could not be told from the other",
                set.name
            )));
        }
        let unknown = |volume: &&str| !names.iter().any(|name| name.as_str() == *volume);
        if let Some(volume) = self.access.volumes().find(unknown) {
            return Err(usage(format!(
                "--allow {volume}: no volume or origin is called {volume}"
            )));
        }
        if self.access.have_names() && self.tls_directory.is_none() {
            return Err(usage(
                "--allow: names are those in certificates, and without --tls-dir there are none",
            ));
        }
        if let Some(tag) = self.tags.iter().find(|t| !names.contains(&&t.name)) {
            return Err(usage(format!(
                "--tag {}={}: no volume or origin is called {}",
                tag.name,
                tag.path.display(),
                tag.name
            )));
        }
        let writable = self
            .origins
            .iter()
            .map(|o| format!("--origin {}", o.name))
            .chain(self.writables.iter().map(|w| format!("--writable {}", w.name)))
            .chain(self.tags.iter().map(|t| format!("--tag {}", t.name)))
            .next();
        let by_socket = || self.access.have_local().then(|| "--allow …=unix".to_owned());
        if let Some(option) = writable.clone().or_else(by_socket)
            && self.tls_directory.is_none()
            && let Some(why) = self.listeners.iter().find_map(Listener::lets_all_users_in)
        {
            return Err(usage(format!(
                "{option} is for those whom a Unix socket lets in, but of LISTEN_FDS {why}: set SocketMode=0600 in \
                 the socket's unit, with an absolute path as ListenStream="
            )));
        }
        match writable {
            Some(option) if !self.listeners.iter().any(Listener::offers_writable) => Err(usage(format!(
                "{option}: writable exports are offered on Unix sockets, --origin-listen and --single only: give one \
                 of them"
            ))),
            _ => Ok(()),
        }
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

/// `--snapshot-size`, where snapshots may be made.
fn snapshot_size(args: &ServeArgs) -> Result<Option<SnapshotSize>, Error> {
    let Some(text) = &args.snapshot_size else {
        return Ok(None);
    };
    if !matches!(args.freeze, FreezeMethod::Auto | FreezeMethod::LvmSnapshot) {
        return Err(usage(format!(
            "--snapshot-size {text}: no snapshot of a logical volume is made with this --freeze"
        )));
    }
    let size = parse_snapshot_size(text).map_err(|why| usage(format!("--snapshot-size {text}: {why}")))?;
    Ok(Some(size))
}

/// The n-th copy area belongs to the n-th origin.
fn origins(args: &ServeArgs) -> Result<Vec<OriginConfig>, Error> {
    if args.origin.len() != args.copy_area.len() {
        return Err(usage(format!(
            "there are {} --origin and {} --copy-area: each origin needs one of its own, in the same order",
            args.origin.len(),
            args.copy_area.len()
        )));
    }
    args.origin
        .iter()
        .zip(&args.copy_area)
        .map(|(origin, area)| {
            let (name, path) = named("--origin", origin)?;
            let copy_area = copy_area(area)?;
            Ok(OriginConfig {
                name,
                path,
                copy_area,
            })
        })
        .collect()
}

/// The allow lists: NAME=ENTRY,ENTRY…
fn allow_lists(args: &ServeArgs) -> Result<AllowLists, Error> {
    let mut lists = AllowLists::default();
    for argument in &args.allow {
        let malformed = || usage(format!("--allow {argument}: write EXPORT=NAME,NAME…"));
        let (volume, entries) = argument.split_once('=').ok_or_else(malformed)?;
        if volume.is_empty() || entries.split(',').any(str::is_empty) {
            return Err(malformed());
        }
        for entry in entries.split(',') {
            // Most likely a part of a name with a comma, which would let another client in.
            if entry.trim() != entry {
                return Err(usage(format!(
                    "--allow {argument}: the entry {entry:?} begins or ends with a space; a name that has a comma cannot \
                     be listed, give a DNS name of the certificate"
                )));
            }
            let Ok(allowed) = entry.parse::<Allowed>();
            let shown = matches!(&allowed, Allowed::Name(name) if name.contains('/'));
            if shown {
                return Err(usage(format!(
                    "--allow {argument}: {entry} is no network, and no name has a slash"
                )));
            }
            lists.allow(volume, [allowed]);
        }
    }
    Ok(lists)
}

/// The TLS directory, if there shall be TLS.
fn tls_directory(args: &ServeArgs) -> Result<Option<PathBuf>, Error> {
    match (args.tls, &args.tls_dir) {
        (Some(TlsMode::Off), _) | (None, None) => Ok(None),
        (_, Some(directory)) => Ok(Some(directory.clone())),
        (Some(TlsMode::Require), None) => Err(usage(
            "--tls require: say where the certificates are, with --tls-dir",
        )),
    }
}

/// All listeners, Unix sockets first; one under the runtime directory if none is given or passed.
fn listeners(
    args: &ServeArgs,
    passed: Vec<PassedSocket>,
    stdio: Option<Stdio>,
) -> Result<Vec<Listener>, Error> {
    let encrypted = tls_directory(args)?.is_some();
    if encrypted && args.insecure_plaintext {
        return Err(usage(
            "--insecure-plaintext: nothing goes in plaintext with TLS, leave it out",
        ));
    }
    let beyond_allowed = encrypted || args.insecure_plaintext;
    let given = !(args.socket.is_empty() && args.listen.is_empty() && args.origin_listen.is_empty());
    if !passed.is_empty() {
        if given || stdio.is_some() {
            return Err(usage(
                "a service manager passed the sockets to listen on (LISTEN_FDS): give no --socket, --listen, \
                 --origin-listen or --single beside them",
            ));
        }
        for socket in &passed {
            if let PassedAddress::Tcp(address) = socket.address {
                reachable("a socket of LISTEN_FDS", address, beyond_allowed)?;
            }
        }
        return Ok(passed.into_iter().map(Arc::new).map(Listener::Passed).collect());
    }
    if let Some(stdio) = stdio {
        return Ok(vec![Listener::Single(Arc::new(stdio))]);
    }
    let mut found: Vec<Listener> = args
        .socket
        .iter()
        .map(|argument| {
            let (path, plaintext) = socket(argument)?;
            Ok(Listener::Unix { path, plaintext })
        })
        .collect::<Result<_, Error>>()?;
    for (option, arguments, writable) in [
        ("--listen", &args.listen, false),
        ("--origin-listen", &args.origin_listen, true),
    ] {
        for argument in arguments {
            let addresses = tcp(option, argument, beyond_allowed)?;
            found.extend(
                addresses
                    .into_iter()
                    .map(|address| Listener::Tcp { address, writable }),
            );
        }
    }
    if found.is_empty() {
        found.push(Listener::Unix {
            path: runtime_path(SOCKET_NAME),
            plaintext: false,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn config(line: &[&str]) -> Result<ServeConfig, Error> {
        let words = ["nbd-export", "serve"].iter().chain(line);
        let Verb::Serve(args) = Cli::try_parse_from(words).unwrap().verb else {
            panic!("serve");
        };
        ServeConfig::try_from(&args)
    }

    fn refused(line: &[&str]) {
        assert_eq!(config(line).unwrap_err().kind(), ErrorKind::Usage, "{line:?}");
    }

    #[test]
    fn copy_areas_belong_to_origins_by_position() {
        let both = config(&[
            "--origin",
            "a=/a",
            "--origin",
            "b=/b",
            "--copy-area",
            "/ca,size=1M",
            "--copy-area",
            "/cb",
        ])
        .unwrap();
        let areas: Vec<_> = both
            .origins
            .iter()
            .map(|o| (o.name.as_str(), o.copy_area.size))
            .collect();
        assert_eq!(areas, [("a", Some(1 << 20)), ("b", None)]);
        refused(&["--origin", "a=/a"]);
        refused(&["/v", "--copy-area", "/ca"]);
        refused(&["--origin", "/a", "--copy-area", "/ca"]);
    }

    #[test]
    fn export_names_are_unique() {
        refused(&["/x/vm.img", "/y/vm.img"]);
        refused(&["a=/x", "--origin", "a=/a", "--copy-area", "/ca"]);
        refused(&["a=/x", "--writable", "a=/a"]);
        refused(&["--writable", "/a"]);
        assert!(config(&["--writable", "a=/a"]).is_ok());
        refused(&["--writable", "a=/a", "--listen", "127.0.0.1:0"]);
        refused(&["a=/x", "a.tag=/y", "--tag", "a=/t"]);
        refused(&["a=/x", "--tag", "a=/t", "--tag", "a=/u"]);
        refused(&["a=/x", "--tag", "b=/t"]);
        assert!(config(&["a=/x", "b=/y", "--tag", "a=/t"]).is_ok());
        refused(&[]);
    }

    #[test]
    fn writable_exports_need_a_listener_that_offers_them() {
        let origin = ["--origin", "a=/a", "--copy-area", "/ca"];
        let with = |more: &[&'static str]| config(&[&origin, more].concat());
        assert!(with(&[]).is_ok());
        assert_eq!(
            with(&["--listen", "127.0.0.1:0"]).unwrap_err().kind(),
            ErrorKind::Usage
        );
        assert!(with(&["--listen", "127.0.0.1:0", "--socket", "/s"]).is_ok());
        assert!(with(&["--origin-listen", "127.0.0.1:0"]).is_ok());
        assert_eq!(
            with(&["--origin-listen", "0.0.0.0:0"]).unwrap_err().kind(),
            ErrorKind::Usage
        );
        assert!(with(&["--origin-listen", "0.0.0.0:0", "--insecure-plaintext"]).is_ok());
    }

    #[test]
    fn passed_unix_sockets_keep_other_users_from_what_can_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = |mode| {
            let path = directory.path().join(format!("{mode:o}"));
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            PassedAddress::Unix(Some(path))
        };
        let passed = |address: &PassedAddress, line: &[&str]| {
            let words = ["nbd-export", "serve", "a=/a"].iter().chain(line);
            let Verb::Serve(args) = Cli::try_parse_from(words).unwrap().verb else {
                panic!("serve");
            };
            let socket = PassedSocket {
                socket: std::fs::File::open("/dev/null").unwrap().into(),
                address: address.clone(),
            };
            ServeConfig::new(&args, vec![socket], None)
        };
        let (private, open) = (
            [file(0o600), file(0o660)],
            [file(0o666), PassedAddress::Unix(None)],
        );
        for theirs in [
            &["--origin", "o=/o", "--copy-area", "/ca"][..],
            &["--writable", "w=/w"],
            &["--tag", "a=/t"],
            &["--allow", "a=10.0.0.1,unix"],
        ] {
            for address in &private {
                assert!(passed(address, theirs).is_ok(), "{address:?} {theirs:?}");
            }
            for address in &open {
                let error = passed(address, theirs).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Usage);
                assert!(error.to_string().contains("SocketMode=0600"), "{error}");
                let encrypted = [theirs, &["--tls-dir", "/pki"]].concat();
                assert!(passed(address, &encrypted).is_ok(), "{address:?} {theirs:?}");
            }
        }
        for address in &open {
            assert!(
                passed(address, &[]).is_ok(),
                "frozen images are for all who reach it"
            );
            assert!(passed(address, &["--allow", "a=10.0.0.1"]).is_ok());
        }
    }

    #[test]
    fn passed_sockets_are_the_only_ones_and_obey_the_same_rule() {
        let private = tempfile::NamedTempFile::new().unwrap();
        let passed = |address: &str, line: &[&str]| {
            let words = ["nbd-export", "serve", "--origin", "a=/a", "--copy-area", "/ca"];
            let Verb::Serve(args) = Cli::try_parse_from(words.iter().chain(line)).unwrap().verb else {
                panic!("serve");
            };
            let socket = |address| PassedSocket {
                socket: std::fs::File::open("/dev/null").unwrap().into(),
                address,
            };
            let sockets = vec![
                socket(PassedAddress::Unix(Some(private.path().to_owned()))),
                socket(PassedAddress::Tcp(address.parse().unwrap())),
            ];
            ServeConfig::new(&args, sockets, None)
        };
        let offered = |config: ServeConfig| -> Vec<bool> {
            config.listeners.iter().map(Listener::offers_writable).collect()
        };
        assert_eq!(offered(passed("127.0.0.1:1", &[]).unwrap()), [true, false]);
        assert_eq!(
            offered(passed("192.0.2.1:1", &["--insecure-plaintext"]).unwrap()),
            [true, false]
        );
        for (address, line) in [
            ("192.0.2.1:1", &[][..]),
            ("127.0.0.1:1", &["--socket", "/s"]),
            ("127.0.0.1:1", &["--listen", "127.0.0.1:0"]),
            ("127.0.0.1:1", &["--origin-listen", "127.0.0.1:0"]),
        ] {
            let kind = passed(address, line).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::Usage, "{address} {line:?}");
        }
    }

    #[test]
    fn allow_lists_are_of_volumes_that_there_are() {
        let with = |more: &[&'static str]| config(&[&["vm=/v", "--tls-dir", "/pki"], more].concat());
        let several = ["--allow", "vm=proxy,10.0.0.0/8", "--allow", "vm=unix"];
        assert!(with(&several).unwrap().access.have_names());
        assert!(with(&["--allow", "vm=Backup Proxy"]).is_ok());
        for bad in [
            "vm",
            "vm=",
            "=x",
            "vm=a,,b",
            "v=proxy",
            "vm@1=proxy",
            "vm.tag=proxy",
            "vm=10.0.0.0/33",
            "vm=Backup, Inc",
            "vm=proxy ",
            "vm= ",
        ] {
            assert!(with(&["--allow", bad]).is_err(), "{bad}");
        }
        refused(&["vm=/v", "--allow", "vm=proxy"]);
        assert!(config(&["vm=/v", "--allow", "vm=10.0.0.1,unix"]).is_ok());
    }

    #[test]
    fn tls_lets_listen_beyond_this_machine() {
        let beyond = ["/v", "--listen", "0.0.0.0:0"];
        let with = |more: &[&'static str]| config(&[&beyond, more].concat());
        assert!(with(&[]).is_err());
        assert!(with(&["--tls-dir", "/pki", "--tls", "off"]).is_err());
        assert!(with(&["--tls", "require"]).is_err());
        assert!(with(&["--tls-dir", "/pki", "--insecure-plaintext"]).is_err());
        let directory = |more| with(more).unwrap().tls_directory;
        assert_eq!(directory(&["--tls-dir", "/pki"]), Some("/pki".into()));
        assert_eq!(
            directory(&["--tls-dir", "/pki", "--tls=require"]),
            Some("/pki".into())
        );
        assert_eq!(
            directory(&["--tls-dir", "/pki", "--tls=off", "--insecure-plaintext"]),
            None
        );
    }

    #[test]
    fn a_default_socket_stands_in_only_for_no_listener_at_all() {
        let one = config(&["/v"]).unwrap().listeners;
        assert!(
            matches!(&one[..], [Listener::Unix { path, plaintext: false }] if path.ends_with(SOCKET_NAME))
        );
        let tcp = config(&["/v", "--listen", "127.0.0.1:0"]).unwrap().listeners;
        assert!(matches!(&tcp[..], [Listener::Tcp { writable: false, .. }]));
    }
}
