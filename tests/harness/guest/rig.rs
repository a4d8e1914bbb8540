//! Where guests are booted: a directory for their disks, and a network that they share with the test.

use std::cell::RefCell;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::booted::{Boot, Guest};
use super::qemu::{self, VirtualDisk};
use crate::disk::{Scratch, run, scratch};
use crate::program::built;

/// What a guest is booted with.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// Files that are `/dev/ubda`, `/dev/ubdb`, … in the guest. Several guests may have the same.
    pub disks: &'a [&'a Path],
    /// Memory in MiB. What the guest writes outside its disks and `/run/share` goes into it too.
    pub memory: u32,
    /// Kernel modules beyond those of `guest.sh`, as `dm-crypt`.
    pub modules: &'a [&'a str],
    /// When the guest is ended in any case.
    pub deadline: Duration,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            disks: &[],
            memory: 512,
            modules: &[],
            deadline: Duration::from_secs(600),
        }
    }
}

/// A place for guests. The thread that makes it has a network namespace to itself from then on, and with it all threads and
/// processes that it starts later: a backup that the test runs reaches the guests by their addresses.
pub struct Rig {
    directory: Arc<Scratch>,
    /// Names, the first of which is guest 1.
    guests: RefCell<Vec<String>>,
}

impl Rig {
    /// The address of the test's side, for servers that guests are to reach.
    pub const ADDRESS: &'static str = "10.77.0.1";

    /// An empty rig.
    #[allow(clippy::new_without_default, reason = "it changes the thread that makes it")]
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "rig", "type", "bridge"]);
        run(
            "ip",
            &["address", "add", &format!("{}/24", Self::ADDRESS), "dev", "rig"],
        );
        run("ip", &["link", "set", "rig", "up"]);
        Self {
            directory: Arc::new(scratch()),
            guests: RefCell::default(),
        }
    }

    /// A path for a file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new disk: a sparse file, which stands for the LUN.
    pub fn disk(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create_new(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// Boots a guest with disks, and waits until it takes commands.
    pub fn boot(&self, name: &str, disks: &[&Path]) -> Guest {
        self.boot_with(
            name,
            &Setup {
                disks,
                ..Setup::default()
            },
        )
    }

    /// The same, with all that can be chosen. A name that was booted before is the same machine once more, with its addresses and
    /// its `/run/share`: the guest has to have ended.
    pub fn boot_with(&self, name: &str, setup: &Setup) -> Guest {
        let place = self.place(name);
        // What User-Mode Linux knows a running guest by stays behind when one is killed.
        std::fs::remove_dir_all(place.directory.join("guest")).ok();
        let (tap, mac) = (&place.tap, &place.mac);
        let mut arguments = vec![format!(
            "vec0:transport=tap,ifname={tap},depth=64,gro=1,mac={mac}"
        )];
        arguments.extend(place.kernel_arguments(setup.modules, setup.deadline));
        for (index, disk) in setup.disks.iter().enumerate() {
            arguments.push(format!("ubd{index}c={}", disk.display()));
        }
        self.start("rig/boot", name, place, setup.memory, arguments, setup.deadline)
    }

    /// Boots a guest in QEMU with disks, in the order in which its kernel is to find those of a kind. A name that was booted before
    /// is the same machine once more, as with [`Self::boot_with`].
    pub fn boot_qemu(&self, name: &str, disks: &[VirtualDisk]) -> Guest {
        const MODULES: [&str; 4] = ["virtio_net", "virtio_blk", "xfs", "ext4"];
        // Without KVM a guest is some times slower than User-Mode Linux is.
        const DEADLINE: Duration = Duration::from_secs(1200);
        let place = self.place(name);
        let mut arguments = place.kernel_arguments(&MODULES, DEADLINE);
        arguments.push("rig.interface=eth0".into());
        arguments.push("--".into());
        arguments.push("-netdev".into());
        arguments.push(format!("tap,id=net,ifname={},script=no,downscript=no", place.tap));
        arguments.push("-device".into());
        arguments.push(format!("virtio-net-pci,netdev=net,romfile=,mac={}", place.mac));
        arguments.extend(qemu::arguments(disks));
        self.start("rig/boot-qemu", name, place, 512, arguments, DEADLINE)
    }

    fn start(
        &self,
        script: &str,
        name: &str,
        place: Place,
        memory: u32,
        arguments: Vec<String>,
        deadline: Duration,
    ) -> Guest {
        Guest::boot(Boot {
            script,
            name,
            address: place.address,
            directory: &place.directory,
            memory,
            arguments,
            agent: place.agent,
            deadline,
            keep: Arc::clone(&self.directory),
        })
    }

    /// Where a guest is, and how it is reached.
    fn place(&self, name: &str) -> Place {
        let number = self.number_of(name);
        let directory = self.path(&format!("guest.{name}"));
        std::fs::create_dir_all(directory.join("share")).unwrap();
        Place {
            directory,
            address: format!("10.77.0.{}", 10 + number),
            tap: format!("guest{number}"),
            mac: format!("02:00:0a:4d:00:{number:02x}"),
            agent: TcpListener::bind((Self::ADDRESS, 0)).unwrap(),
        }
    }

    /// Which guest this is, plugged into the network.
    fn number_of(&self, name: &str) -> usize {
        let mut guests = self.guests.borrow_mut();
        if let Some(index) = guests.iter().position(|guest| guest == name) {
            return index + 1;
        }
        guests.push(name.to_owned());
        let tap = format!("guest{}", guests.len());
        run("ip", &["tuntap", "add", &tap, "mode", "tap"]);
        run("ip", &["link", "set", &tap, "master", "rig", "up"]);
        guests.len()
    }
}

/// See [`Rig::place`].
struct Place {
    directory: PathBuf,
    address: String,
    /// The network card, outside.
    tap: String,
    mac: String,
    agent: TcpListener,
}

impl Place {
    /// What `guest.sh` wants to know.
    fn kernel_arguments(&self, modules: &[&str], deadline: Duration) -> Vec<String> {
        let programs = built("nbd-export").parent().unwrap().to_owned();
        vec![
            format!("rig.address={}", self.address),
            format!("rig.agent={}", self.agent.local_addr().unwrap()),
            format!("rig.bin={}", programs.display()),
            format!("rig.modules={}", modules.join(",")),
            format!("rig.deadline={}", deadline.as_secs()),
        ]
    }
}
