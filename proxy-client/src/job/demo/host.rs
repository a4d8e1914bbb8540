//! The demo's host: the real one, in this process.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use nbd_export::cli::{Cli as HostCli, Verb as HostVerb};
use nbd_export::config::ServeConfig;
use nbd_export::host::Host;
use nbd_export::server::Server;
use nbd_export::uri::{NbdAddress, NbdUri};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::SIZE;
use super::stage::Place;
use crate::error::{Error, ErrorKind, Result};

/// The host, in this process.
pub(super) struct DemoHost {
    host: Arc<Host>,
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl DemoHost {
    /// What this command line does: `nbd-export serve --origin vol=lun.img --copy-area copy.img …`
    pub(super) async fn start(place: &Place) -> Result<Self> {
        let path = |name: &str| place.path().join(name).display().to_string();
        let socket = place.path().join("nbd.sock");
        let arguments = [
            "nbd-export".to_owned(),
            "serve".to_owned(),
            format!("--origin=vol={}", path("lun.img")),
            format!("--copy-area={},size={SIZE}", path("copy.img")),
            format!("--identity={}=demo-lun", path("lun.img")),
            format!("--identity={}=demo-copy", path("copy.img")),
            format!("--socket={}", socket.display()),
            format!("--control={}", path("control.sock")),
            format!("--state-dir={}", path("state")),
        ];
        let parsed = HostCli::try_parse_from(arguments).map_err(host_failed)?;
        let HostVerb::Serve(serve) = parsed.verb else {
            unreachable!("the arguments above say serve")
        };
        let config = ServeConfig::try_from(&serve).map_err(host_failed)?;
        let opened = tokio::task::spawn_blocking({
            let config = config.clone();
            move || Host::open(&config)
        });
        let host = Arc::new(opened.await.map_err(host_failed)?.map_err(host_failed)?);
        let exports = Arc::clone(&host);
        let server = Server::bind(&config.listeners, exports)
            .await
            .map_err(host_failed)?;
        host.publish_at(server.addresses().clone());
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server.run(async move {
            // Dropped or sent, both mean the end.
            let _ = stopped.await;
        }));
        Ok(Self {
            host,
            socket,
            stop,
            server,
        })
    }

    pub(super) fn uri(&self, export: &str) -> NbdUri {
        let export = nbd_export::proto::ExportName::new(export).expect("the demo's names are short");
        NbdUri {
            address: NbdAddress::Unix(self.socket.clone()),
            export,
            tls: None,
        }
    }

    pub(super) async fn freeze(&self) -> Result<String> {
        let host = Arc::clone(&self.host);
        let frozen = tokio::task::spawn_blocking(move || host.freeze("vol", Some("demo")));
        let mut made = frozen.await.map_err(host_failed)?.map_err(host_failed)?;
        let made = made.pop().expect("a freeze of one volume makes one frozen image");
        Ok(made.export)
    }

    pub(super) async fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.server.await.map_err(host_failed)?;
        self.host.close();
        Ok(())
    }
}

pub(super) fn host_failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::HostRefused, "the host of the demo failed").caused_by(error)
}
