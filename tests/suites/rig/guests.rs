//! The rig itself: guests do what they are told, and nothing is left of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tests::disk::scratch;
use tests::guest::{Bus, Guest, Rig, VirtualDisk};
use tests::site::text;
use tests::{needs_guests, needs_qemu_guests};

/// Process ids of the children of a process, and of theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    children
        .flat_map(|pid| std::iter::once(pid).chain(descendants(pid)))
        .collect()
}

/// Whether a process is there, and has not ended.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !matches!(rest.trim_start().chars().next(), None | Some('Z' | 'X')))
}

fn assert_all_end(pids: &[u32]) {
    let until = Instant::now() + Duration::from_secs(20);
    while pids.iter().any(|&pid| lives(pid)) {
        assert!(Instant::now() < until, "{pids:?} are left behind");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guest_does_what_it_is_told_and_goes_with_its_thread() {
    needs_guests!();
    // User-Mode Linux has a process for each address space of the guest.
    does_what_it_is_told(2, |rig, disk| (rig.boot("guest", &[disk]), "/dev/ubda"));
}

#[test]
fn so_does_a_guest_in_qemu() {
    needs_qemu_guests!();
    does_what_it_is_told(1, |rig, disk| {
        let disk = VirtualDisk {
            file: disk,
            bus: Bus::Scsi,
            block_size: 512,
            names: "",
        };
        (rig.boot_qemu("guest", &[disk]), "/dev/sda")
    });
}

/// What a guest does that is so many processes at least, and has a disk somewhere.
fn does_what_it_is_told(processes: usize, boot: fn(&Rig, &Path) -> (Guest, &'static str)) {
    let (told, heard) = mpsc::channel();
    let failed = thread::spawn(move || {
        let rig = Rig::new();
        let disk = rig.disk("disk", 16 << 20);
        let (guest, node) = boot(&rig, &disk);

        assert!(guest.run("nbd-export --version").starts_with("nbd-export "));
        let ended = guest.try_run("echo before; exit 7");
        assert_eq!((ended.status, ended.stdout.as_str()), (7, "before\n"));
        // Two at a time, one of which is killed.
        let mut sleeper = guest.start("echo asleep; exec sleep 1000");
        assert_eq!(sleeper.line().as_deref(), Some("asleep"));
        guest.run(&format!("kill -KILL {}", sleeper.pid));
        assert_eq!(sleeper.wait().status, 128 + 9);
        // Both directions of the shared directory, and the disk.
        fs::write(guest.share.join("in"), "from outside").unwrap();
        guest.run(&format!(
            "cp /run/share/in /run/share/out; dd if=/run/share/in of={node} oflag=sync status=none"
        ));
        assert_eq!(fs::read(guest.share.join("out")).unwrap(), b"from outside");
        assert!(fs::read(&disk).unwrap().starts_with(b"from outside"));

        let pids = descendants(guest.pid());
        assert!(pids.len() >= processes, "{pids:?}");
        told.send((pids, rig.path(""))).unwrap();
        panic!("a test that fails");
    });
    let (pids, directory): (Vec<u32>, PathBuf) = heard.recv().unwrap();
    assert!(failed.join().is_err());
    assert_all_end(&pids);
    assert!(!directory.exists());
}

/// As when a test is killed, because it takes too long, for one.
#[test]
fn a_guest_by_hand_goes_with_whoever_booted_it() {
    needs_guests!();
    let directory = scratch();
    let script = directory.path().join("script");
    fs::write(&script, "echo; echo hello from $(uname -m); sleep 1000").unwrap();
    let by_hand = Path::new(env!("CARGO_MANIFEST_DIR")).join("rig/by-hand");
    let mut child = Command::new(by_hand)
        .args(["-d", "16M", text(&script)])
        .env("TMPDIR", directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let hello = stdout
        .lines()
        .map_while(Result::ok)
        .any(|line| line.starts_with("hello from x86_64"));
    let pids = descendants(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(hello && pids.len() > 1, "{pids:?}");
    assert_all_end(&pids);
}
