//! A file system that was frozen and may be so still.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::libc;
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use super::record::{self, TITLE};
use super::removal::Finding;
use crate::sys::file_system;

/// A file system that was about to be frozen, or is, or was. No freeze outlives the kernel that holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrozenFileSystem {
    /// A file or directory in it, absolute.
    pub path: PathBuf,
    /// The device number that `stat` gives for what lies in it.
    device: u64,
    /// Which start of the machine this was in.
    boot: Uuid,
}

impl FrozenFileSystem {
    /// The one that an open file lies in.
    ///
    /// # Errors
    /// Of `/proc` and `fstat`.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self {
            path: fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?,
            device: file.metadata()?.dev(),
            boot: boot_id()?,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let (device, boot, path) = (self.device, self.boot, record::encoded(&self.path));
        format!("{TITLE}\nkind file-system\ndevice {device}\nboot {boot}\npath {path}\n")
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(TITLE)?.strip_prefix("\nkind file-system\n")?;
        let mut lines = rest.lines();
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        let found = Self {
            device: value("device")?.parse().ok()?,
            boot: value("boot")?.parse().ok()?,
            path: OsString::from_vec(percent_decode_str(value("path")?).collect()).into(),
        };
        lines.next().is_none().then_some(found)
    }

    /// Whether it may be frozen, which nothing tells that changes nothing and does not wait.
    ///
    /// # Errors
    /// `/proc` does not tell which start of the machine this is.
    pub fn find(&self) -> io::Result<Finding> {
        if self.boot != boot_id()? {
            return Ok(Finding::Gone);
        }
        Ok(match self.open() {
            Ok(_) => Finding::There,
            Err(error) => Finding::Unclear(error.to_string()),
        })
    }

    /// Thaws it, if it is frozen. Nothing is written to it, or to any other, so this does not wait for what it undoes.
    ///
    /// # Errors
    /// `ResourceBusy`: another file system is in its place, or none. Of `FITHAW`.
    pub fn thaw(&self) -> io::Result<()> {
        if self.find()? == Finding::Gone {
            return Ok(());
        }
        match file_system::thaw(&self.open()?) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
            _ => Ok(()),
        }
    }

    fn open(&self) -> io::Result<File> {
        let elsewhere = |why: &str| io::Error::new(io::ErrorKind::ResourceBusy, why.to_owned());
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(&self.path)
            .map_err(|error| elsewhere(&format!("{error}: is it mounted?")))?;
        if file.metadata()?.dev() != self.device {
            return Err(elsewhere("another file system is mounted there"));
        }
        Ok(file)
    }
}

/// random(4), `boot_id`.
fn boot_id() -> io::Result<Uuid> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_nothing_else_is() {
        let mut file_system = FrozenFileSystem::of(&File::open("/").unwrap()).unwrap();
        file_system.path = PathBuf::from(OsString::from_vec(b"/a b\n\xff".to_vec()));
        let text = file_system.to_text();
        assert_eq!(FrozenFileSystem::parse(&text).as_ref(), Some(&file_system));
        assert_eq!(FrozenFileSystem::parse(&format!("{text}more\n")), None);
        assert_eq!(FrozenFileSystem::parse(&text.replace("device", "devices")), None);
    }

    #[test]
    fn one_of_another_boot_is_gone_and_one_in_whose_place_another_is_is_left_alone() {
        let mut file_system = FrozenFileSystem::of(&File::open("/proc").unwrap()).unwrap();
        assert_eq!(file_system.find().unwrap(), Finding::There);
        file_system.device += 1;
        assert!(matches!(file_system.find().unwrap(), Finding::Unclear(_)));
        assert_eq!(
            file_system.thaw().unwrap_err().kind(),
            io::ErrorKind::ResourceBusy
        );
        file_system.boot = Uuid::nil();
        assert_eq!(file_system.find().unwrap(), Finding::Gone);
        file_system.thaw().unwrap();
    }
}
