//! What `serve` is to do, from a file (docs/serve.md). What is in one place of it is refused with its line and column; what takes two
//! places to be wrong, by the names of both.

mod entries;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use volmap::cow::CopyAreaSpec;

use self::entries::{AbsolutePath, AbsolutePattern, AllowEntry, Bytes, Fullness, Identified, Within};
use super::SOCKET_NAME;
use super::arguments::VolumeName;
use super::endpoint::control_path;
use super::hooks::Hooks;
use super::inherited::PassedSocket;
use super::listener::{ControlPath, Endpoints};
use super::serve::{Freezing, NamedPath, OnRequest, OriginConfig, ServeConfig, VolumeConfig};
use super::set::{Members, SetConfig};
use super::state_dir::state_dir;
use crate::cli::FreezeMethod;
use crate::error::{Error, ErrorKind};
use crate::host::KEPT_MAX;
use crate::server::AllowLists;
use crate::server::limits::{CONNECTIONS, CONNECTIONS_MAX, HANDSHAKE_DEADLINE, Limits};

/// Longest time for a handshake or a hook, in seconds; as for the options.
const SECONDS_MAX: u64 = 3600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    state_dir: Option<AbsolutePath>,
    #[serde(default)]
    keep_for_incremental: Within<0, { KEPT_MAX as u64 }>,
    #[serde(default)]
    listen: Listen,
    #[serde(default)]
    on_request: OnRequestTable,
    #[serde(default)]
    hooks: HooksTable,
    #[serde(default)]
    volume: BTreeMap<VolumeName, VolumeTable>,
    #[serde(default)]
    set: BTreeMap<VolumeName, SetTable>,
    #[serde(default)]
    origin: BTreeMap<VolumeName, OriginTable>,
    #[serde(default)]
    writable: BTreeMap<VolumeName, WritableTable>,
    #[serde(default)]
    identity: BTreeMap<AbsolutePath, Identified>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Listen {
    #[serde(default)]
    socket: Vec<AbsolutePath>,
    #[serde(default)]
    plaintext_socket: Vec<AbsolutePath>,
    #[serde(default)]
    tcp: Vec<String>,
    #[serde(default)]
    writable_tcp: Vec<String>,
    tls_dir: Option<AbsolutePath>,
    #[serde(default)]
    insecure_plaintext: bool,
    control: Option<AbsolutePath>,
    max_connections: Option<Within<1, { CONNECTIONS_MAX as u64 }>>,
    handshake_timeout: Option<Within<1, SECONDS_MAX>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OnRequestTable {
    hold: Option<Within<1, 86_400>>,
    most: Option<Within<1, 16>>,
    every: Option<Within<0, 86_400>>,
    longest: Option<Within<1, 86_400>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HooksTable {
    pre_freeze: Option<String>,
    post_freeze: Option<String>,
    post_thaw: Option<String>,
    timeout: Option<Within<1, SECONDS_MAX>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct VolumeTable {
    path: AbsolutePath,
    allow: Option<Vec<AllowEntry>>,
    tag: Option<AbsolutePath>,
    #[serde(default = "strongest")]
    freeze: FreezeMethod,
    clone_dir: Option<AbsolutePath>,
    snapshot_size: Option<String>,
    #[serde(default)]
    assume_exclusive: bool,
    #[serde(default)]
    freeze_at_start: bool,
    #[serde(default)]
    freeze_on_request: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SetTable {
    #[serde(default)]
    volume: BTreeMap<VolumeName, MemberTable>,
    #[serde(default)]
    files: Vec<AbsolutePattern>,
    #[serde(default)]
    filesystem: Vec<AbsolutePath>,
    #[serde(default)]
    origins: Vec<VolumeName>,
    allow: Option<Vec<AllowEntry>>,
    #[serde(default = "strongest")]
    freeze: FreezeMethod,
    clone_dir: Option<AbsolutePath>,
    snapshot_size: Option<String>,
    #[serde(default)]
    assume_exclusive: bool,
    #[serde(default)]
    freeze_at_start: bool,
    #[serde(default)]
    freeze_on_request: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MemberTable {
    path: AbsolutePath,
    tag: Option<AbsolutePath>,
    #[serde(default)]
    freeze_on_request: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OriginTable {
    path: AbsolutePath,
    copy_area: CopyAreaTable,
    allow: Option<Vec<AllowEntry>>,
    tag: Option<AbsolutePath>,
    #[serde(default)]
    freeze_on_request: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CopyAreaTable {
    path: AbsolutePath,
    size: Option<Bytes>,
    #[serde(default)]
    on_full: Fullness,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WritableTable {
    path: AbsolutePath,
    allow: Option<Vec<AllowEntry>>,
}

fn strongest() -> FreezeMethod {
    FreezeMethod::Auto
}

impl ServeConfig {
    /// What a file says, with the sockets that were passed beside it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]; [`ErrorKind::System`] where it cannot be read.
    pub fn load(path: &Path, passed: Vec<PassedSocket>) -> Result<Self, Error> {
        let at = || format!("--config {}", path.display());
        let text =
            std::fs::read_to_string(path).map_err(|why| Error::caused(ErrorKind::System, at(), why))?;
        Self::parse(&text, passed).map_err(|why| Error::caused(why.kind(), at(), why))
    }

    pub(super) fn parse(text: &str, passed: Vec<PassedSocket>) -> Result<Self, Error> {
        let file: File = toml::from_str(text).map_err(|why| usage(why.to_string()))?;
        let listen = &file.listen;
        let tls_directory = listen.tls_dir.clone().map(Into::into);
        let seconds = |given: Option<Within<1, SECONDS_MAX>>| given.map(|time| Duration::from_secs(time.0));
        let mut config = Self {
            volumes: Vec::new(),
            freeze_at_start: Vec::new(),
            on_request: file.on_request.rules(),
            origins: Vec::new(),
            writables: Vec::new(),
            tags: Vec::new(),
            identities: (file.identity.into_iter())
                .map(|(path, identity)| (path.into(), identity.0))
                .collect(),
            listeners: listen
                .endpoints(tls_directory.is_some())
                .listeners(SOCKET_NAME, passed, None)?,
            limits: Limits {
                connections: match listen.max_connections {
                    Some(most) => usize::try_from(most.0).unwrap_or(CONNECTIONS_MAX),
                    None => CONNECTIONS,
                },
                handshake_deadline: seconds(listen.handshake_timeout).unwrap_or(HANDSHAKE_DEADLINE),
            },
            access: AllowLists::default(),
            tls_directory,
            control: Some(ControlPath {
                path: control_path(listen.control.as_ref().map(AsRef::as_ref)),
                given: listen.control.is_some(),
            }),
            sets: Vec::new(),
            hooks: Hooks {
                pre_freeze: file.hooks.pre_freeze,
                post_freeze: file.hooks.post_freeze,
                post_thaw: file.hooks.post_thaw,
                timeout: seconds(file.hooks.timeout).unwrap_or(Hooks::TIMEOUT),
            },
            state_dir: state_dir(file.state_dir.as_ref().map(AsRef::as_ref)),
            keep_for_incremental: usize::try_from(file.keep_for_incremental.0).unwrap_or(KEPT_MAX),
        };
        for (name, table) in file.volume {
            config.add_volume(name, table)?;
        }
        for (name, table) in file.set {
            config.add_set(name, table)?;
        }
        for (name, table) in file.origin {
            config.add_origin(name, table);
        }
        for (name, WritableTable { path, allow }) in file.writable {
            config.allow(&name, allow.as_deref());
            let path = path.into();
            config.writables.push(NamedPath { name, path });
        }
        config.check()?;
        Ok(config)
    }

    /// A list that is there and empty is a list all the same: nobody is on it.
    fn allow(&mut self, name: &VolumeName, allowed: Option<&[AllowEntry]>) {
        if let Some(allowed) = allowed {
            let entries = allowed.iter().map(|entry| entry.0.clone());
            self.access.allow(name.as_str(), entries);
        }
    }

    fn freeze_on_request(&mut self, name: &VolumeName, allowed: bool) {
        self.on_request.names.extend(allowed.then(|| name.clone()));
    }

    fn tag(&mut self, name: &VolumeName, path: Option<AbsolutePath>) {
        self.tags.extend(path.map(|path| NamedPath {
            name: name.clone(),
            path: path.into(),
        }));
    }

    fn add_volume(&mut self, name: VolumeName, table: VolumeTable) -> Result<(), Error> {
        self.allow(&name, table.allow.as_deref());
        self.tag(&name, table.tag);
        if table.freeze_at_start {
            self.freeze_at_start.push(name.clone());
        }
        self.freeze_on_request(&name, table.freeze_on_request);
        let freezing = Freezing {
            method: table.freeze,
            clone_dir: table.clone_dir.map(Into::into),
            snapshot_size: None,
            assume_exclusive: table.assume_exclusive,
        };
        self.volumes.push(VolumeConfig {
            freezing: freezing
                .with_snapshots_of(table.snapshot_size.as_deref())
                .map_err(|why| Error::caused(why.kind(), format!("volume.{name}"), why))?,
            name,
            path: table.path.into(),
        });
        Ok(())
    }

    fn add_set(&mut self, name: VolumeName, table: SetTable) -> Result<(), Error> {
        let at = |why: Error| Error::caused(why.kind(), format!("set.{name}"), why);
        let freezing = Freezing {
            method: table.freeze,
            clone_dir: table.clone_dir.map(Into::into),
            snapshot_size: None,
            assume_exclusive: table.assume_exclusive,
        };
        let freezing = freezing
            .with_snapshots_of(table.snapshot_size.as_deref())
            .map_err(at)?;
        let mut volumes = Vec::new();
        for (member, table) in table.volume {
            self.tag(&member, table.tag);
            self.freeze_on_request(&member, table.freeze_on_request);
            let path = table.path.into();
            volumes.push(NamedPath { name: member, path });
        }
        let file_systems: Vec<_> = table.filesystem.into_iter().map(Into::into).collect();
        let files: Vec<String> = table.files.into_iter().map(Into::into).collect();
        let members = Members {
            volumes,
            files: &files,
            file_systems: &file_systems,
            origins: table.origins,
        };
        let set = SetConfig::new(name.clone(), members, freezing).map_err(at)?;
        if table.freeze_at_start && !set.origins.is_empty() {
            let why = "a set with origins is frozen on request only, since they are exported live under their own names";
            return Err(at(usage(why.to_owned())));
        }
        if table.allow.is_some() && set.members.is_empty() {
            let why = "allow is the list of its volumes, and it has none: give each of its origins a list of its own";
            return Err(at(usage(why.to_owned())));
        }
        for member in &set.members {
            self.allow(&member.name, table.allow.as_deref());
        }
        if table.freeze_at_start {
            self.freeze_at_start.push(name.clone());
        }
        self.freeze_on_request(&name, table.freeze_on_request);
        self.sets.push(set);
        Ok(())
    }

    fn add_origin(&mut self, name: VolumeName, table: OriginTable) {
        self.allow(&name, table.allow.as_deref());
        self.tag(&name, table.tag);
        self.freeze_on_request(&name, table.freeze_on_request);
        self.origins.push(OriginConfig {
            name,
            path: table.path.into(),
            copy_area: CopyAreaSpec {
                path: table.copy_area.path.into(),
                size: table.copy_area.size.map(|size| size.0),
                on_full: table.copy_area.on_full.0,
            },
        });
    }
}

impl OnRequestTable {
    fn rules(&self) -> OnRequest {
        let usual = OnRequest::default();
        OnRequest {
            hold: self.hold.map_or(usual.hold, |time| Duration::from_secs(time.0)),
            most: self
                .most
                .map_or(usual.most, |most| usize::try_from(most.0).unwrap_or(usual.most)),
            every: self.every.map_or(usual.every, |time| Duration::from_secs(time.0)),
            longest: (self.longest).map_or(usual.longest, |time| Duration::from_secs(time.0)),
            ..usual
        }
    }
}

impl Listen {
    fn endpoints(&self, encrypted: bool) -> Endpoints {
        let private = self.socket.iter().map(|path| (path.clone().into(), false));
        let plaintext = (self.plaintext_socket.iter()).map(|path| (path.clone().into(), true));
        let read_only = self
            .tcp
            .iter()
            .map(|address| ("listen.tcp", address.clone(), false));
        let writable =
            (self.writable_tcp.iter()).map(|address| ("listen.writable-tcp", address.clone(), true));
        Endpoints {
            sockets: private.chain(plaintext).collect(),
            tcp: read_only.chain(writable).collect(),
            encrypted,
            insecure_plaintext: self.insecure_plaintext,
        }
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests;
