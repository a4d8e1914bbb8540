//! `serve`: exports images and chains over NBD.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nbd_export::command::Signals;
use nbd_export::config::{Inherited, Listener, VolumeName, split_name};
use nbd_export::export::Export;
use nbd_export::server::limits::Limits;
use nbd_export::server::{Readiness, Server, runtime};
use nbd_export::tls::ServerTls;

use crate::chain::{Cache, Chain, find_parents};
use crate::cli::ServeArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::serve::{ImageExport, Overlay, Shelf, allow_lists, check, listeners, of_server};

/// What the names of images end with.
const SUFFIXES: [&str; 3] = [".vbi.zst", ".vbi", ".zst"];

/// Serves until a signal, or until the one client of standard input and output has gone. Prints to `out` where the exports are, and
/// READY.
///
/// # Errors
/// [`ErrorKind::Usage`], [`ErrorKind::ImageBad`] and others of an image, [`ErrorKind::OutputExists`] and others of an overlay.
pub fn serve(args: &ServeArgs, out: &mut dyn Write) -> Result<()> {
    // Before this process opens anything of its own.
    let mut inherited = Inherited::take(args.listening.single, args.listening.ready_fd).map_err(of_server)?;
    let images = named_images(args)?;
    let overlays = overlays(args, &images)?;
    let listeners = listeners(&args.listening, &mut inherited)?;
    let access = allow_lists(&args.listening, |export| images.contains_key(export))?;
    check(&args.listening, &listeners, !overlays.is_empty(), &access)?;
    let tls = args.listening.tls_dir.as_deref().map(load_tls).transpose()?;
    let limits = Limits {
        connections: args.listening.max_connections,
        handshake_deadline: Duration::from_secs(args.listening.handshake_timeout),
    };
    let failed = |error| Error::new(ErrorKind::Io, "the runtime cannot start").caused_by(error);
    let runtime = runtime(&limits).map_err(failed)?;
    let served = runtime.block_on(async {
        let signals = Signals::catch().map_err(of_server)?;
        let parents = args.parent.clone();
        let opening = tokio::task::spawn_blocking(move || open(&images, &parents, &overlays));
        let exports = tokio::select! {
            exports = opening => exports.map_err(|error| {
                Error::new(ErrorKind::Io, "the thread that opened the images broke down").caused_by(error)
            })??,
            () = signals.more_than(0) => return Ok(()),
        };
        let shelf = Arc::new(Shelf::new(exports.clone(), access));
        let mut server = Server::bind(&listeners, shelf.clone())
            .await
            .map_err(of_server)?
            .within(limits);
        if let Some(tls) = tls {
            server = server.requiring_tls(tls);
        }
        if !listeners
            .iter()
            .any(|listener| matches!(listener, Listener::Single(_)))
        {
            announce(&shelf, &server, out)?;
        }
        // What was passed belongs to the server now, and is closed where the server closes it.
        drop(listeners);
        let mut readiness = Readiness::new(inherited.ready.take(), inherited.notify.take());
        readiness.tell();
        let shutdown = async {
            signals.more_than(0).await;
            readiness.stopping();
        };
        tokio::select! {
            () = server.run(shutdown) => {}
            () = signals.more_than(1) => tracing::warn!("a second signal: connections are cut"),
        }
        readiness.stopping();
        // An orderly end is as good as a flush of every client.
        let flushed = tokio::task::spawn_blocking(move || exports.values().try_for_each(|e| e.flush()));
        match flushed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::new(
                ErrorKind::Io,
                format!("what was written last may not be in the overlay: {error}"),
            )),
            Err(error) => {
                Err(Error::new(ErrorKind::Io, "the thread that flushed broke down").caused_by(error))
            }
        }
    });
    // Threads that hang in a dead disk must not keep the process.
    runtime.shutdown_background();
    served
}

/// The images by the names of their exports.
fn named_images(args: &ServeArgs) -> Result<BTreeMap<String, PathBuf>> {
    let mut images = BTreeMap::new();
    for argument in &args.images {
        let (name, path) = split_name(argument);
        let path = PathBuf::from(path);
        let refused = |why: &dyn std::fmt::Display| usage(format!("{argument}: {why}"));
        let name = match name {
            Some(name) => name.parse::<VolumeName>(),
            None => {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                let stem = SUFFIXES.iter().find_map(|suffix| file.strip_suffix(suffix));
                VolumeName::from_path(Path::new(stem.unwrap_or(&file)))
            }
        };
        let name = name.map_err(|why| refused(&why))?.to_string();
        if images.contains_key(&name) {
            let message = format!("two exports would be called {name}: give NAME=IMAGE to tell them apart");
            return Err(usage(message));
        }
        images.insert(name, path);
    }
    Ok(images)
}

/// The overlays by the names of the exports.
fn overlays(args: &ServeArgs, images: &BTreeMap<String, PathBuf>) -> Result<BTreeMap<String, PathBuf>> {
    let mut overlays = BTreeMap::new();
    for argument in &args.overlay {
        let (name, path) = split_name(argument);
        let name = match (name, images.keys().next()) {
            (Some(name), _) if images.contains_key(name) => name,
            (None, Some(only)) if images.len() == 1 => only,
            (Some(_), _) => {
                return Err(usage(format!(
                    "--overlay {argument}: there is no export of this name"
                )));
            }
            (None, _) => {
                let message = "there are several images: write NAME=PATH";
                return Err(usage(format!("--overlay {argument}: {message}")));
            }
        };
        if overlays.insert(name.to_owned(), PathBuf::from(path)).is_some() {
            return Err(usage(format!("--overlay {argument}: {name} has one already")));
        }
    }
    Ok(overlays)
}

/// Opens all images, and computes their roots.
fn open(
    images: &BTreeMap<String, PathBuf>,
    parents: &[PathBuf],
    overlays: &BTreeMap<String, PathBuf>,
) -> Result<BTreeMap<String, Arc<dyn Export>>> {
    let cache = Cache::new();
    let mut exports: BTreeMap<String, Arc<dyn Export>> = BTreeMap::new();
    for (name, path) in images {
        let chain = Chain::open_with(&find_parents(path, parents)?, &cache)?;
        chain.check()?;
        let overlay = match overlays.get(name) {
            Some(path) => Some(Overlay::open(path, chain.header().size, chain.end().root)?),
            None => None,
        };
        let unreadable = chain.unreadable()?;
        if unreadable.bytes > 0 {
            tracing::warn!(
                export = name,
                bytes = unreadable.bytes,
                ranges = unreadable.count,
                "some of the volume could not be read when the image was made; reads of it fail"
            );
        }
        exports.insert(name.clone(), Arc::new(ImageExport::new(Arc::new(chain), overlay)));
    }
    Ok(exports)
}

fn load_tls(directory: &Path) -> Result<ServerTls> {
    ServerTls::load(directory).map_err(|error| {
        Error::new(ErrorKind::Io, "the certificates cannot be used")
            .at_path(directory)
            .caused_by(error)
    })
}

fn announce(shelf: &Shelf, server: &Server, out: &mut dyn Write) -> Result<()> {
    let failed = |error| Error::new(ErrorKind::Io, "standard output cannot be written").caused_by(error);
    for (name, writable) in shelf.names() {
        if let Some(uri) = server.addresses().uri(name, writable) {
            writeln!(out, "{uri}").map_err(failed)?;
        }
    }
    writeln!(out, "READY").and_then(|()| out.flush()).map_err(failed)
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}
