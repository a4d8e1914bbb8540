//! The device-mapper's control interface: tables and status of a device, and the global event counter.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use super::{DeviceNumber, ioctl};

const CONTROL: &str = "/dev/mapper/control";

const DM_VERSION: libc::Ioctl = 0xc138_fd00;
const DM_DEV_STATUS: libc::Ioctl = 0xc138_fd07;
const DM_TABLE_STATUS: libc::Ioctl = 0xc138_fd0c;
const DM_TARGET_MSG: libc::Ioctl = 0xc138_fd0e;
const DM_DEV_ARM_POLL: libc::Ioctl = 0xc138_fd10;

const DM_READONLY_FLAG: u32 = 1 << 0;
const DM_SUSPEND_FLAG: u32 = 1 << 1;
const DM_STATUS_TABLE_FLAG: u32 = 1 << 4;
const DM_BUFFER_FULL_FLAG: u32 = 1 << 8;
/// Without it a status would have some targets commit what they have in memory: looking must change nothing.
const DM_NOFLUSH_FLAG: u32 = 1 << 11;

const HEADER: usize = 312;
const TARGET_SPEC: usize = 40;

/// A table larger than this is not read: 65,536 targets of a line each.
const BUFFER_MAX: usize = 8 << 20;

/// Byte offsets in `struct dm_ioctl` of `include/uapi/linux/dm-ioctl.h`, all numbers in the byte order of the machine.
mod at {
    pub(super) const VERSION: usize = 0;
    pub(super) const DATA_SIZE: usize = 12;
    pub(super) const DATA_START: usize = 16;
    pub(super) const TARGET_COUNT: usize = 20;
    pub(super) const FLAGS: usize = 28;
    pub(super) const EVENT_NR: usize = 32;
    pub(super) const DEV: usize = 40;
    pub(super) const NAME: std::ops::Range<usize> = 48..176;
    pub(super) const UUID: std::ops::Range<usize> = 176..305;
}

/// What the device-mapper says of one device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Its UUID, such as `LVM-…`; may be empty.
    pub uuid: String,
    /// Events of the device itself. Does not count table swaps: no witness by itself.
    pub event_number: u32,
}

/// One line of a table, as `dmsetup table` prints it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetLine {
    /// First sector (512 bytes) of the device.
    pub start: u64,
    /// Sectors.
    pub sectors: u64,
    /// The target's type: `linear`, `striped`, …
    pub kind: String,
    /// Its parameters.
    pub parameters: String,
}

/// What the targets of a device say of themselves at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetStatus {
    /// Whether the kernel refuses writes to the device.
    pub read_only: bool,
    /// Whether the device is suspended: whatever is sent to it waits.
    pub suspended: bool,
    /// A line for each target, as `dmsetup status` prints it; the parameters are its status.
    pub targets: Vec<TargetLine>,
}

/// The open control device. Each open file has its own place in the global event counter.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// Opens the control device and arms it: [`Control::events_since_armed`] tells of every event from here on.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`: no device-mapper, or not root. `EINVAL`: an interface of another major version.
    pub fn open() -> io::Result<Self> {
        let file = match File::options().read(true).write(true).open(CONTROL) {
            // Its node is there, and its driver is not.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            other => other?,
        };
        let control = Self { file };
        control.call(DM_VERSION, None, 0, HEADER)?;
        control.call(DM_DEV_ARM_POLL, None, 0, HEADER)?;
        Ok(control)
    }

    /// Whether any device of this machine got a new table, was made, removed or renamed, or raised an event since the control
    /// device was opened.
    ///
    /// # Errors
    /// Of `poll`.
    pub fn events_since_armed(&self) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, exclusive for the call; with a timeout of 0 it does not wait.
        match unsafe { libc::poll(&raw mut poll, 1, 0) } {
            0 => Ok(false),
            n if n > 0 => Ok(true),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Name, UUID and event number of a device.
    ///
    /// # Errors
    /// `ENXIO`: no such device.
    pub fn device_status(&self, device: DeviceNumber) -> io::Result<DeviceStatus> {
        let answer = self.call(DM_DEV_STATUS, Some(device), 0, HEADER)?;
        Ok(DeviceStatus {
            name: text(answer.get(at::NAME))?,
            uuid: text(answer.get(at::UUID))?,
            event_number: u32_at(&answer, at::EVENT_NR)?,
        })
    }

    /// The device with this UUID, if there is one.
    ///
    /// # Errors
    /// Of the device-mapper.
    pub fn device_with(&self, uuid: &str) -> io::Result<Option<DeviceNumber>> {
        let mut buffer = encode_request(None, 0, HEADER)?;
        let room = buffer.get_mut(at::UUID).ok_or_else(unreadable)?;
        // The last byte stays a NUL.
        if uuid.is_empty() || uuid.len() >= room.len() {
            return Ok(None);
        }
        room[..uuid.len()].copy_from_slice(uuid.as_bytes());
        // SAFETY: `data_size` in the header tells the kernel the true length of the buffer, and it writes no further.
        match unsafe { ioctl::with_bytes(&self.file, DM_DEV_STATUS, &mut buffer) } {
            Ok(_) => Ok(Some(DeviceNumber::from_kernel(u64_at(&buffer, at::DEV)?))),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The live table of a device.
    ///
    /// # Errors
    /// `ENXIO`: no such device. `InvalidData`: an answer that cannot be read, or one above 8 MiB.
    pub fn table(&self, device: DeviceNumber) -> io::Result<Vec<TargetLine>> {
        let (_, table) = self.targets(device, DM_STATUS_TABLE_FLAG)?;
        Ok(table)
    }

    /// What the targets of a device say of themselves now.
    ///
    /// # Errors
    /// As [`Control::table`].
    pub fn target_status(&self, device: DeviceNumber) -> io::Result<TargetStatus> {
        let (flags, targets) = self.targets(device, DM_NOFLUSH_FLAG)?;
        Ok(TargetStatus {
            read_only: flags & DM_READONLY_FLAG != 0,
            suspended: flags & DM_SUSPEND_FLAG != 0,
            targets,
        })
    }

    /// Sends a message to the first target of a device, as `dmsetup message DEVICE 0 …` does.
    ///
    /// # Errors
    /// `ENXIO`: no such device. What the target answers.
    pub fn message(&self, device: DeviceNumber, message: &str) -> io::Result<()> {
        let mut request = encode_message(device, message)?;
        // SAFETY: `data_size` in the header tells the kernel the true length of the buffer, and it writes no further.
        unsafe { ioctl::with_bytes(&self.file, DM_TARGET_MSG, &mut request) }.map(drop)
    }

    /// The flags of a device, and a line for each of its targets.
    fn targets(&self, device: DeviceNumber, flags: u32) -> io::Result<(u32, Vec<TargetLine>)> {
        let mut size = 16 << 10;
        loop {
            let answer = self.call(DM_TABLE_STATUS, Some(device), flags, size)?;
            let told = u32_at(&answer, at::FLAGS)?;
            if told & DM_BUFFER_FULL_FLAG == 0 {
                let start = index(u32_at(&answer, at::DATA_START)?)?;
                let targets = answer.get(start..).ok_or_else(unreadable)?;
                let targets = parse_targets(targets, u32_at(&answer, at::TARGET_COUNT)?)?;
                return Ok((told, targets));
            }
            size *= 4;
            if size > BUFFER_MAX {
                return Err(unreadable());
            }
        }
    }

    /// One request with a buffer of `size` bytes, at least [`HEADER`]; gives the buffer back as the kernel left it.
    fn call(
        &self,
        request: libc::Ioctl,
        device: Option<DeviceNumber>,
        flags: u32,
        size: usize,
    ) -> io::Result<Vec<u8>> {
        let mut buffer = encode_request(device, flags, size)?;
        // SAFETY: `data_size` in the header tells the kernel the true length of the buffer, and it writes no further.
        unsafe { ioctl::with_bytes(&self.file, request, &mut buffer) }?;
        Ok(buffer)
    }
}

fn encode_request(device: Option<DeviceNumber>, flags: u32, size: usize) -> io::Result<Vec<u8>> {
    assert!(size >= HEADER, "a request holds its header");
    let mut buffer = vec![0; size];
    let mut put = |at: usize, bytes: &[u8]| buffer[at..at + bytes.len()].copy_from_slice(bytes);
    // The lowest version with every request used here but DM_DEV_ARM_POLL (4.37), which older kernels refuse by themselves.
    put(at::VERSION, &4u32.to_ne_bytes());
    put(
        at::DATA_SIZE,
        &u32::try_from(size).map_err(io::Error::other)?.to_ne_bytes(),
    );
    put(
        at::DATA_START,
        &u32::try_from(HEADER).map_err(io::Error::other)?.to_ne_bytes(),
    );
    put(at::FLAGS, &flags.to_ne_bytes());
    put(at::DEV, &device.map_or(0, DeviceNumber::to_kernel).to_ne_bytes());
    Ok(buffer)
}

/// A request with `struct dm_target_msg` behind it: the sector of the target, and a text that ends with a NUL.
fn encode_message(device: DeviceNumber, message: &str) -> io::Result<Vec<u8>> {
    let sector = 0u64.to_ne_bytes();
    let size = HEADER + sector.len() + message.len() + 1;
    let mut buffer = encode_request(Some(device), 0, size)?;
    buffer[HEADER + sector.len()..size - 1].copy_from_slice(message.as_bytes());
    Ok(buffer)
}

/// Reads `struct dm_target_spec` (start, length, status, next, type\[16\]) with its text behind it, `count` times. `next` counts
/// from the start of all targets.
fn parse_targets(data: &[u8], count: u32) -> io::Result<Vec<TargetLine>> {
    let mut targets = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let spec = data.get(at..).ok_or_else(unreadable)?;
        targets.push(TargetLine {
            start: u64_at(spec, 0)?,
            sectors: u64_at(spec, 8)?,
            kind: text(spec.get(24..TARGET_SPEC))?,
            parameters: text(spec.get(TARGET_SPEC..))?,
        });
        let next = index(u32_at(spec, 20)?)?;
        if next <= at && targets.len() < index(count)? {
            return Err(unreadable());
        }
        at = next;
    }
    Ok(targets)
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the device-mapper's answer cannot be read",
    )
}

fn index(number: u32) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

fn u32_at(data: &[u8], at: usize) -> io::Result<u32> {
    let bytes = data
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .ok_or_else(unreadable)?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn u64_at(data: &[u8], at: usize) -> io::Result<u64> {
    let bytes = data
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .ok_or_else(unreadable)?;
    Ok(u64::from_ne_bytes(*bytes))
}

/// The text up to the first NUL, which has to be there.
fn text(bytes: Option<&[u8]>) -> io::Result<String> {
    let text = bytes
        .and_then(|b| CStr::from_bytes_until_nul(b).ok())
        .ok_or_else(unreadable)?;
    Ok(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(start: u64, sectors: u64, next: u32, kind: &str, parameters: &str) -> Vec<u8> {
        let mut spec = [start.to_ne_bytes(), sectors.to_ne_bytes()].concat();
        spec.extend(0u32.to_ne_bytes());
        spec.extend(next.to_ne_bytes());
        spec.extend(kind.as_bytes());
        spec.resize(TARGET_SPEC, 0);
        spec.extend(parameters.as_bytes());
        spec.push(0);
        spec.resize(spec.len().next_multiple_of(8), 0);
        spec
    }

    #[test]
    fn targets_are_read_one_behind_the_other() {
        let first = spec(0, 2048, 56, "linear", "8:16 384");
        assert_eq!(first.len(), 56);
        let second = spec(2048, 8, 112, "linear", "8:32 0");
        let targets = parse_targets(&[first, second].concat(), 2).unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!(
            targets[1],
            TargetLine {
                start: 2048,
                sectors: 8,
                kind: "linear".into(),
                parameters: "8:32 0".into()
            }
        );
    }

    #[test]
    fn an_answer_that_is_cut_or_runs_in_circles_is_refused() {
        let whole = [
            spec(0, 1, 56, "linear", "8:16 384"),
            spec(1, 1, 112, "linear", "8:16 999"),
        ]
        .concat();
        for len in 0..104 {
            assert!(parse_targets(&whole[..len], 2).is_err(), "{len}");
        }
        let circle = spec(0, 1, 0, "linear", "8:16 384");
        assert!(parse_targets(&circle, 2).is_err());
    }

    #[test]
    fn a_message_stands_behind_the_sector_and_ends_with_a_nul() {
        let device = DeviceNumber { major: 253, minor: 4 };
        let request = encode_message(device, "hello").unwrap();
        assert_eq!(request.len(), HEADER + 8 + 6);
        assert_eq!(&request[HEADER..], b"\0\0\0\0\0\0\0\0hello\0");
        assert_eq!(
            index(u32_at(&request, at::DATA_SIZE).unwrap()).unwrap(),
            request.len()
        );
        assert_eq!(u64_at(&request, at::DEV).unwrap(), 253 << 8 | 4);
    }

    #[test]
    fn a_request_has_the_layout_of_the_kernel() {
        let device = DeviceNumber {
            major: 253,
            minor: 0x1_02,
        };
        let request = encode_request(Some(device), DM_STATUS_TABLE_FLAG, 1024).unwrap();
        assert_eq!(u32_at(&request, at::VERSION).unwrap(), 4);
        assert_eq!(u32_at(&request, at::DATA_SIZE).unwrap(), 1024);
        assert_eq!(u32_at(&request, at::DATA_START).unwrap(), 312);
        assert_eq!(u64_at(&request, at::DEV).unwrap(), 0x10_fd02);
        assert_eq!(
            index(u32::try_from(DM_TABLE_STATUS >> 16 & 0x3fff).unwrap()).unwrap(),
            HEADER
        );
    }
}
