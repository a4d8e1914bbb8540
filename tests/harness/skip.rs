//! Skips that somebody sees.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Notes that a test did not run, and why: on stderr, and in the file that `SKIP_LOG` names.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIP: {test}: {why}");
    eprintln!("{line}");
    if let Some(log) = std::env::var_os("SKIP_LOG") {
        let mut file = OpenOptions::new().create(true).append(true).open(log).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    let directories = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    directories
        .split(':')
        .any(|directory| Path::new(directory).join(program).exists())
}

/// Why loop devices with file systems cannot be had, if so.
pub fn no_loop_devices() -> Option<&'static str> {
    if !is_root() {
        return Some("needs root for loop devices and mounts");
    }
    if !has("losetup")
        || !Command::new("losetup")
            .arg("-f")
            .output()
            .is_ok_and(|o| o.status.success())
    {
        return Some("no loop device is free");
    }
    None
}

/// Why guests cannot be booted, if so.
pub fn no_guests() -> Option<&'static str> {
    if is_root() && !has("linux.uml") {
        Some("linux.uml is not installed")
    } else {
        no_network_for_guests()
    }
}

/// Why guests cannot be booted in QEMU, if so.
pub fn no_qemu_guests() -> Option<&'static str> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rig/qemu/accelerator");
    if is_root() && !has("qemu-system-x86_64") {
        Some("qemu-system-x86_64 is not installed")
    } else if is_root() && !made.exists() {
        Some("there is no kernel in target/rig/qemu, which tests/rig/kernel makes")
    } else {
        no_network_for_guests()
    }
}

fn no_network_for_guests() -> Option<&'static str> {
    let tun = || File::options().read(true).write(true).open("/dev/net/tun");
    if !is_root() {
        Some("needs root for guests and their network")
    } else if tun().is_err() {
        Some("no /dev/net/tun for the network of guests")
    } else {
        None
    }
}

/// Returns from the test, noting a skip, unless guests can be booted (see [`crate::guest`]), and the named programs are there.
#[macro_export]
macro_rules! needs_guests {
    ($($program:literal),*) => {
        if let Some(why) = $crate::skip::no_guests() {
            $crate::skip::skip($crate::test_name!(), why);
            return;
        }
        $crate::needs!("ip", "cc", "insmod" $(, $program)*);
    };
}

/// Returns from the test, noting a skip, unless guests can be booted in QEMU, and the named programs are there.
#[macro_export]
macro_rules! needs_qemu_guests {
    ($($program:literal),*) => {
        if let Some(why) = $crate::skip::no_qemu_guests() {
            $crate::skip::skip($crate::test_name!(), why);
            return;
        }
        $crate::needs!("ip" $(, $program)*);
    };
}

/// Returns from the test, noting a skip, unless root, loop devices and the named programs are there.
#[macro_export]
macro_rules! needs_loop_devices {
    ($($program:literal),*) => {
        if let Some(why) = $crate::skip::no_loop_devices() {
            $crate::skip::skip($crate::test_name!(), why);
            return;
        }
        $crate::needs!($($program),*);
    };
}

/// Returns from the test, noting a skip, unless the named programs are installed.
#[macro_export]
macro_rules! needs {
    ($($program:literal),*) => {
        $(if !$crate::skip::has($program) {
            $crate::skip::skip($crate::test_name!(), concat!($program, " is not installed"));
            return;
        })*
    };
}

/// The name of the test that this stands in.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}
