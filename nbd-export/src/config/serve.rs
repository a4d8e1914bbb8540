//! What `serve` is to do, validated.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use volmap::cow::CopyAreaSpec;
use volmap::freeze::SnapshotSize;
use volmap::identity::Identity;

use super::arguments::VolumeName;
use super::hooks::Hooks;
use super::listener::{ControlPath, Listener};
use super::set::SetConfig;
use super::size::parse_snapshot_size;
use super::state_dir::StateDir;
use crate::cli::FreezeMethod;
use crate::error::{Error, ErrorKind};
use crate::server::AllowLists;
use crate::server::limits::Limits;

/// Something that has a name and lies somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedPath {
    /// What it is called.
    pub name: VolumeName,
    /// Where it is.
    pub path: PathBuf,
}

/// How a volume or a set is frozen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Freezing {
    /// The way.
    pub method: FreezeMethod,
    /// Where reflink clones are kept.
    pub clone_dir: Option<PathBuf>,
    /// How large snapshots of logical volumes are, where somebody said.
    pub snapshot_size: Option<SnapshotSize>,
    /// Whether the operator vouches for volumes that nothing can watch.
    pub assume_exclusive: bool,
}

impl Freezing {
    /// The same with snapshots of this size.
    pub(super) fn with_snapshots_of(self, size: Option<&str>) -> Result<Self, Error> {
        let Some(text) = size else { return Ok(self) };
        if !matches!(self.method, FreezeMethod::Auto | FreezeMethod::LvmSnapshot) {
            return Err(usage(format!(
                "snapshot-size {text}: no snapshot of a logical volume is made with this way to freeze"
            )));
        }
        let parsed =
            parse_snapshot_size(text).map_err(|why| usage(format!("snapshot-size {text}: {why}")))?;
        Ok(Self {
            snapshot_size: Some(parsed),
            ..self
        })
    }
}

/// What clients may have frozen, and how much of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnRequest {
    /// The volumes and sets.
    pub names: Vec<VolumeName>,
    /// How long such a frozen image outlives the last connection to it.
    pub hold: Duration,
    /// How many of them a volume or set may have at a time.
    pub most: usize,
    /// Shortest time from one to the next of a volume or set.
    pub every: Duration,
    /// How old one may become while somebody reads it, unless the host's side holds it longer.
    pub longest: Duration,
}

impl Default for OnRequest {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            hold: Duration::from_secs(900),
            most: 2,
            every: Duration::from_secs(10),
            longest: Duration::from_secs(86_400),
        }
    }
}

/// A volume that is frozen and served read-only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeConfig {
    /// What it is called.
    pub name: VolumeName,
    /// Where it is.
    pub path: PathBuf,
    /// How it is frozen.
    pub freezing: Freezing,
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

/// What `serve` is to do.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Volumes to freeze.
    pub volumes: Vec<VolumeConfig>,
    /// Volumes and sets that are frozen at start.
    pub freeze_at_start: Vec<VolumeName>,
    /// What is frozen for clients that ask for it.
    pub on_request: OnRequest,
    /// Volumes to serve read-write.
    pub origins: Vec<OriginConfig>,
    /// Volumes to serve read-write as they are.
    pub writables: Vec<NamedPath>,
    /// Tag files, by the volume or origin whose disk they prove.
    pub tags: Vec<NamedPath>,
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
    pub sets: Vec<SetConfig>,
    /// What runs around every freeze.
    pub hooks: Hooks,
    /// Where it is written down what a crash would leave behind.
    pub state_dir: StateDir,
    /// How many frozen images of a volume are kept for incrementals.
    pub keep_for_incremental: usize,
}

impl ServeConfig {
    /// The names of all volumes, whichever way they are served.
    fn names(&self) -> Vec<&VolumeName> {
        let in_sets = self.sets.iter().flat_map(|set| &set.members);
        let frozen = self.volumes.iter().map(|volume| &volume.name);
        frozen
            .chain(in_sets.map(|member| &member.name))
            .chain(self.origins.iter().map(|origin| &origin.name))
            .chain(self.writables.iter().map(|writable| &writable.name))
            .collect()
    }

    /// What no line shows alone.
    pub(super) fn check(&self) -> Result<(), Error> {
        let names = self.names();
        if names.is_empty() {
            return Err(usage(
                "there is nothing to serve: give a volume, a set, an origin or a writable",
            ));
        }
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
        let mut sets = BTreeSet::new();
        for SetConfig { name, .. } in &self.sets {
            if names.contains(&name) || !sets.insert(name) {
                return Err(usage(format!(
                    "the set {name}: a volume or another set is called so, too, and one could not be told from the other"
                )));
            }
        }
        for set in &self.sets {
            let is_there = |name: &&VolumeName| self.origins.iter().any(|origin| origin.name == **name);
            if let Some(name) = set.origins.iter().find(|name| !is_there(name)) {
                return Err(usage(format!("the set {}: no origin is called {name}", set.name)));
            }
        }
        let unknown = |volume: &&str| !names.iter().any(|name| name.as_str() == *volume);
        if let Some(volume) = self.access.volumes().find(unknown) {
            return Err(usage(format!(
                "the allow list of {volume}: no volume or origin is called {volume}"
            )));
        }
        if self.access.have_names() && self.tls_directory.is_none() {
            return Err(usage(
                "allow: names are those in certificates, and without tls-dir there are none",
            ));
        }
        if let Some(tag) = self.tags.iter().find(|t| !names.contains(&&t.name)) {
            return Err(usage(format!(
                "the tag {}={}: no volume or origin is called {}",
                tag.name,
                tag.path.display(),
                tag.name
            )));
        }
        self.check_listeners()
    }

    /// What can be written, and what is for local users, gets the listeners that it needs and no others.
    fn check_listeners(&self) -> Result<(), Error> {
        let writable = self
            .origins
            .iter()
            .map(|o| format!("the origin {}", o.name))
            .chain(self.writables.iter().map(|w| format!("the writable {}", w.name)))
            .chain(self.tags.iter().map(|t| format!("the tag of {}", t.name)))
            .next();
        let by_socket = || {
            self.access
                .have_local()
                .then(|| "what unix is allowed".to_owned())
        };
        if let Some(what) = writable.clone().or_else(by_socket)
            && self.tls_directory.is_none()
            && let Some(why) = self.listeners.iter().find_map(Listener::lets_all_users_in)
        {
            return Err(usage(format!(
                "{what} is for those whom a Unix socket lets in, but of LISTEN_FDS {why}: set SocketMode=0600 in \
                 the socket's unit, with an absolute path as ListenStream="
            )));
        }
        self.check_on_request()?;
        match writable {
            Some(what) if !self.listeners.iter().any(Listener::offers_writable) => Err(usage(format!(
                "{what} can be written, and that is offered on Unix sockets, --origin-listen (writable-tcp in a file) \
                 and --single only: give one of them"
            ))),
            _ => Ok(()),
        }
    }

    /// A freeze is work of root and runs hooks: who may ask for one has been chosen by somebody, by a list, a certificate or the mode of a socket.
    fn check_on_request(&self) -> Result<(), Error> {
        let is_listed = |volume: &VolumeName| self.access.volumes().any(|known| known == volume.as_str());
        // Of a set, all that it is of: it has no list itself.
        let unlisted = |name: &VolumeName| match self.sets.iter().find(|set| set.name == *name) {
            Some(set) => set.names().find(|name| !is_listed(name)).cloned(),
            None => (!is_listed(name)).then(|| name.clone()),
        };
        let Some((name, unlisted)) =
            (self.on_request.names.iter()).find_map(|name| Some((name, unlisted(name)?)))
        else {
            return Ok(());
        };
        if self.tls_directory.is_none()
            && let Some(why) = self.listeners.iter().find_map(Listener::lets_strangers_in)
        {
            return Err(usage(format!(
                "freeze-on-request of {name}: anybody could have it frozen, since {why}: give {unlisted} an allow list, or give a tls-dir"
            )));
        }
        Ok(())
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
