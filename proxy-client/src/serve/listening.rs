//! Where a server of images listens, and for whom: by the rules of `nbd-export serve`.

use nbd_export::config::{Endpoints, Inherited, Listener, allowed, socket};
use nbd_export::server::AllowLists;

use crate::cli::ListenArgs;
use crate::error::{Error, ErrorKind, Result};

/// Name of the socket in the runtime directory when no listener is given.
const SOCKET_NAME: &str = "proxy-client.sock";

/// All listeners, Unix sockets first; one under the runtime directory if none is given or passed.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub(crate) fn listeners(args: &ListenArgs, inherited: &mut Inherited) -> Result<Vec<Listener>> {
    let sockets = args.socket.iter().map(|argument| socket(argument));
    let tcp = args
        .listen
        .iter()
        .map(|argument| ("--listen", argument.clone(), false));
    let endpoints = Endpoints {
        sockets: sockets
            .collect::<std::result::Result<_, _>>()
            .map_err(of_server)?,
        tcp: tcp.collect(),
        encrypted: args.tls_dir.is_some(),
        insecure_plaintext: args.insecure_plaintext,
    };
    let (passed, stdio) = (std::mem::take(&mut inherited.sockets), inherited.stdio.take());
    endpoints.listeners(SOCKET_NAME, passed, stdio).map_err(of_server)
}

/// Who may have which of these exports: EXPORT=ENTRY,ENTRY…
///
/// # Errors
/// [`ErrorKind::Usage`].
pub(crate) fn allow_lists(args: &ListenArgs, is_export: impl Fn(&str) -> bool) -> Result<AllowLists> {
    let mut lists = AllowLists::default();
    for argument in &args.allow {
        let refused = |why: &str| usage(format!("--allow {argument}: {why}"));
        let Some((export, entries)) = argument.split_once('=') else {
            return Err(refused("write EXPORT=NAME,NAME…"));
        };
        if !is_export(export) {
            return Err(refused("there is no export of this name"));
        }
        for entry in entries.split(',') {
            let allowed = allowed(entry).map_err(|why| refused(&why.to_string()))?;
            lists.allow(export, [allowed]);
        }
    }
    if lists.have_names() && args.tls_dir.is_none() {
        return Err(usage(
            "--allow: names are those in certificates, and without --tls-dir there are none",
        ));
    }
    Ok(lists)
}

/// Refuses what was asked for where it would be open to users whom nobody chose: sockets that were passed have modes of their own.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub(crate) fn check(
    args: &ListenArgs,
    listeners: &[Listener],
    has_overlay: bool,
    lists: &AllowLists,
) -> Result<()> {
    let option = match (has_overlay, lists.have_local()) {
        (true, _) => "--overlay",
        (false, true) => "--allow …=unix",
        (false, false) => return Ok(()),
    };
    if has_overlay && !listeners.iter().any(Listener::offers_writable) {
        return Err(usage(
            "--overlay: what can be written to is offered on Unix sockets and --single only: give one of them",
        ));
    }
    let why = listeners.iter().find_map(Listener::lets_all_users_in);
    match why.filter(|_| args.tls_dir.is_none()) {
        Some(why) => Err(usage(format!(
            "{option} is for those whom a Unix socket lets in, but of LISTEN_FDS {why}: set SocketMode=0600 in the \
             socket's unit, with an absolute path as ListenStream="
        ))),
        None => Ok(()),
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message.into())
}

/// What the server of exports says.
pub(crate) fn of_server(error: nbd_export::error::Error) -> Error {
    use nbd_export::error::ErrorKind as Kind;

    let kind = match error.kind() {
        Kind::Usage => ErrorKind::Usage,
        _ => ErrorKind::Io,
    };
    Error::new(kind, error.to_string())
}
