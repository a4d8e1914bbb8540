//! What `serve` is to do, from its arguments.

use std::path::PathBuf;
use std::time::Duration;

use super::SOCKET_NAME;
use super::allow::allowed;
use super::arguments::{NameError, copy_area, identities, named, socket, volume};
use super::endpoint::control_path;
use super::hooks::Hooks;
use super::inherited::{PassedSocket, Stdio};
use super::listener::{ControlPath, Endpoints};
use super::serve::{Freezing, NamedPath, OnRequest, OriginConfig, ServeConfig, VolumeConfig};
use super::set::{Members, SetConfig};
use super::state_dir::state_dir;
use crate::cli::{ServeArgs, TlsMode};
use crate::error::{Error, ErrorKind};
use crate::server::AllowLists;
use crate::server::limits::Limits;

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
        let freezing = Freezing {
            method: args.freeze,
            clone_dir: args.clone_dir.clone(),
            snapshot_size: None,
            assume_exclusive: args.assume_exclusive,
        }
        .with_snapshots_of(args.snapshot_size.as_deref())?;
        let as_volume = |(name, path)| VolumeConfig {
            name,
            path,
            freezing: freezing.clone(),
        };
        let volumes = args
            .volumes
            .iter()
            .map(|argument| volume(argument).map(as_volume))
            .collect::<Result<Vec<_>, _>>()?;
        let sets: Vec<SetConfig> = set(args, &freezing)?.into_iter().collect();
        let mut freeze_at_start = Vec::new();
        if !args.no_freeze {
            freeze_at_start.extend(volumes.iter().map(|volume| volume.name.clone()));
            // Origins are not: under their own names they are exported live.
            let sets = sets.iter().filter(|set| set.origins.is_empty());
            freeze_at_start.extend(sets.map(|set| set.name.clone()));
        }
        let config = Self {
            volumes,
            freeze_at_start,
            on_request: OnRequest::default(),
            origins: origins(args)?,
            writables: named_paths("--writable", &args.writable)?,
            tags: named_paths("--tag", &args.tag)?,
            identities: identities(&args.identity)?,
            listeners: endpoints(args)?.listeners(SOCKET_NAME, passed, stdio)?,
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
            sets,
            hooks: Hooks::new(args),
            state_dir: state_dir(args.state_dir.as_deref()),
            keep_for_incremental: args.keep_for_incremental.unwrap_or(0),
        };
        config.check()?;
        Ok(config)
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

/// `NAME=PATH` of an option that may come several times.
fn named_paths(option: &str, arguments: &[String]) -> Result<Vec<NamedPath>, Error> {
    let parse = |argument: &String| named(option, argument).map(|(name, path)| NamedPath { name, path });
    arguments.iter().map(parse).collect()
}

/// `--set`, with what it is of.
fn set(args: &ServeArgs, freezing: &Freezing) -> Result<Option<SetConfig>, Error> {
    let Some(name) = &args.set else { return Ok(None) };
    let name = name
        .parse()
        .map_err(|why: NameError| usage(format!("--set {name}: {why}")))?;
    let volumes = args
        .volume
        .iter()
        .map(|argument| volume(argument).map(|(name, path)| NamedPath { name, path }))
        .collect::<Result<_, _>>()?;
    let origin = |name: &String| {
        name.parse()
            .map_err(|why: NameError| usage(format!("--set-origin {name}: {why}")))
    };
    let members = Members {
        volumes,
        files: &args.files,
        file_systems: &args.filesystem,
        origins: args.set_origin.iter().map(origin).collect::<Result<_, _>>()?,
    };
    SetConfig::new(name, members, freezing.clone()).map(Some)
}

/// Where to listen, as the arguments say.
fn endpoints(args: &ServeArgs) -> Result<Endpoints, Error> {
    let read_only = args.listen.iter().map(|argument| ("--listen", argument, false));
    let writable = (args.origin_listen.iter()).map(|argument| ("--origin-listen", argument, true));
    Ok(Endpoints {
        sockets: args
            .socket
            .iter()
            .map(|argument| socket(argument))
            .collect::<Result<_, _>>()?,
        tcp: read_only
            .chain(writable)
            .map(|(option, argument, writable)| (option, argument.clone(), writable))
            .collect(),
        encrypted: tls_directory(args)?.is_some(),
        insecure_plaintext: args.insecure_plaintext,
    })
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
            let entry = allowed(entry).map_err(|why| usage(format!("--allow {argument}: {why}")))?;
            lists.allow(volume, [entry]);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};
    use crate::config::{Listener, PassedAddress};

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
            matches!(&one[..], [Listener::Unix { path, plaintext: false }] if path.ends_with("nbd-export.sock"))
        );
        let tcp = config(&["/v", "--listen", "127.0.0.1:0"]).unwrap().listeners;
        assert!(matches!(&tcp[..], [Listener::Tcp { writable: false, .. }]));
    }
}
