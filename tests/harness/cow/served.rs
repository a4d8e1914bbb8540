//! `nbd-export serve` with an origin, as a program.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use nbd_export::uri::NbdUri;
use tokio::runtime::Runtime;
use volmap::limits::COPY_AREA_HEADER;

use super::client::Client;
use super::log::Oracle;
use super::volume::make_volume;
use super::writers::Writers;
use crate::digest;
use crate::disk::{Scratch, scratch};
use crate::program::{Host, backup, nbd_export};

/// `nbd-export serve` with an origin and its copy area, each a file that is declared to be a disk.
pub struct Served {
    host: Option<Host>,
    /// What the origin holds, by the logs of [`Served::writers`].
    pub oracle: Oracle,
    runtime: Runtime,
    /// Bytes of old data that the copy area takes.
    room: u64,
    directory: Scratch,
}

impl Served {
    /// An origin of `size` bytes, whose copy area can hold all of it.
    pub fn new(size: u64) -> Self {
        let mut served = Self::prepared(size);
        served.start();
        served
    }

    /// The same with a copy area for `bytes` of old data.
    pub fn with_room(size: u64, bytes: u64) -> Self {
        let mut served = Self::prepared(size);
        served.room = bytes;
        served.start();
        served
    }

    /// The same as [`Served::new`], not yet started.
    pub fn prepared(size: u64) -> Self {
        let directory = scratch();
        let first = make_volume(&directory.path().join("origin"), size);
        File::create_new(directory.path().join("copies")).unwrap();
        Self {
            host: None,
            oracle: Oracle::new(first),
            runtime: Runtime::new().unwrap(),
            room: size,
            directory,
        }
    }

    /// Serves again what was served before.
    pub fn start(&mut self) {
        let at = |name: &str| self.path(name);
        let size = self.room + COPY_AREA_HEADER;
        self.host = Some(Host::serve(&[
            "--origin",
            &format!("vol={}", at("origin")),
            "--copy-area",
            &format!("{},size={size}", at("copies")),
            "--identity",
            &format!("{}=lun0", at("origin")),
            "--identity",
            &format!("{}=lun1", at("copies")),
            "--socket",
            &at("nbd.sock"),
            "--control",
            &at("control"),
        ]));
    }

    /// A file of the test; the disks are `origin` and `copies`.
    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// The live volume.
    fn live(&self) -> NbdUri {
        self.host.as_ref().unwrap().uri("vol").parse().unwrap()
    }

    /// Writers of the live volume; every other one wants each WRITE on stable storage.
    pub fn writers(&self, count: usize, seed: u64, until_killed: bool) -> Writers {
        let mut clients = Vec::new();
        for number in 0..count {
            let mut client = self.client();
            client.fua = number % 2 == 0;
            self.oracle.add(client.log());
            clients.push(client);
        }
        Writers::start(clients, seed, until_killed)
    }

    /// Connects to the live volume.
    pub fn client(&self) -> Client {
        self.client_of(&self.live())
    }

    /// Connects to any export.
    pub fn client_of(&self, uri: &NbdUri) -> Client {
        Client::connect(self.runtime.handle(), uri, &[]).unwrap()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.host.take().unwrap().kill();
    }

    /// Asks it to end, and waits; it must end well.
    pub fn terminate(&mut self) {
        assert!(self.host.take().unwrap().terminate().success());
    }

    /// Asks the control socket.
    pub fn ask(&self, verb: &[&str]) -> String {
        nbd_export(&[verb, &["--control", &self.path("control")]].concat())
    }

    /// What is served.
    pub fn list(&self) -> serde_json::Value {
        serde_json::from_str(&self.ask(&["list", "--json"])).unwrap()
    }

    /// Backs an export up and checks what is in the image.
    pub fn assert_backs_up(&self, uri: &str, content: &[u8]) -> serde_json::Value {
        let image = self.path("image");
        let luns = [
            format!("lun0={}", self.path("origin")),
            format!("lun1={}", self.path("copies")),
        ];
        let report = backup(&[uri, "--output", &image, "--lun", &luns[0], "--lun", &luns[1]]);
        assert_image(Path::new(&image), content);
        fs::remove_file(image).unwrap();
        report
    }
}

/// What stock zstd makes of an image is `content`.
pub fn assert_image(image: &Path, content: &[u8]) {
    let unpacked = digest::of_command(Command::new("zstd").arg("-dcq").arg(image));
    assert_eq!(unpacked, blake3::hash(content), "{}", image.display());
}
