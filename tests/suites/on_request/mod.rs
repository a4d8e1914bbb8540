//! Frozen images that clients have made: one for each that asks, none for who only looks, and none that stays.

mod hooks;
mod incrementals;
mod jobs;
mod refusals;
mod sets;
mod waiting;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tests::disk::Mounted;
use tests::program::{Host, nbd_export};
use tests::site::{Site, VOLUME, text};

/// The export that is made when it is entered.
const NEW: &str = "vm@new";

/// A volume that clients may have frozen.
struct Ground {
    // First: it has files of the site open.
    _host: Host,
    site: Site,
}

impl Ground {
    /// The agent is told `lines` of the volume, and `tables` beside it.
    fn new(lines: &str, tables: &str) -> Self {
        Self::with_listen("", lines, tables)
    }

    /// The same with other lines about its listeners.
    fn with_listen(listen: &str, lines: &str, tables: &str) -> Self {
        Self::told("", listen, lines, tables)
    }

    fn told(first: &str, listen: &str, lines: &str, tables: &str) -> Self {
        let bytes: Vec<u8> = (0..3_u32 << 20)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes())
            .collect();
        let site = Site::new(Mounted::xfs(1 << 30), &bytes);
        let config = site.disk.outside().join("agent.toml");
        let text_of_config = format!(
            "{first}\n[listen]\nsocket = [{:?}]\ncontrol = {:?}\n{listen}\n[identity]\n{:?} = \"lun0\"\n\
             [volume.{VOLUME}]\npath = {:?}\nfreeze-on-request = true\n{lines}\n{tables}\n",
            site.socket(),
            site.control(),
            site.disk.disk.device,
            site.volume(),
        );
        fs::write(&config, text_of_config).unwrap();
        Self {
            _host: Host::serve(&["--config", text(&config)]),
            site,
        }
    }

    /// One that may be asked as often as a test likes.
    fn eager() -> Self {
        Self::new("", "[on-request]\nevery = 0")
    }

    /// The names of the frozen images that there are.
    fn frozen(&self) -> Vec<String> {
        let listed = nbd_export(&["list", "--json", "--control", text(&self.site.control())]);
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let frozen = listed["volumes"].as_array().unwrap().iter();
        let frozen = frozen.flat_map(|volume| volume["frozen"].as_array().unwrap());
        frozen
            .map(|image| image["export"].as_str().unwrap().to_owned())
            .collect()
    }

    fn thaw_all(&self) {
        for export in self.frozen() {
            nbd_export(&["thaw", &export, "--control", text(&self.site.control())]);
        }
    }

    /// Whoever reads the volume itself reads something else from now on.
    fn overwrite(&self) {
        let mut bytes = fs::read(self.site.volume()).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        let mut volume = fs::File::options().write(true).open(self.site.volume()).unwrap();
        volume.write_all(&bytes).unwrap();
        volume.sync_all().unwrap();
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.site.disk.outside().join(name)
    }

    fn wait_until_thawed(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.frozen().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.frozen());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["60", program])
        .args(arguments)
        .output()
        .unwrap()
}
