//! Device numbers, in the encodings of the kernel and of the C library.

use std::fmt;

use nix::libc;

/// The number of a block device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the `st_dev` or `st_rdev` of `stat`.
    pub fn from_stat(number: u64) -> Self {
        Self {
            major: libc::major(number),
            minor: libc::minor(number),
        }
    }

    /// From the encoding in the kernel's structures (`new_encode_dev`).
    pub fn from_kernel(number: u64) -> Self {
        let bits = |shift: u32, mask: u64| u32::try_from(number >> shift & mask).unwrap_or_default();
        Self {
            major: bits(8, 0xfff),
            minor: bits(0, 0xff) | bits(12, 0xf_ff00),
        }
    }

    /// Into the encoding in the kernel's structures.
    pub fn to_kernel(self) -> u64 {
        let (major, minor) = (u64::from(self.major), u64::from(self.minor));
        (minor & 0xff) | major << 8 | (minor & !0xff) << 12
    }

    /// From `MAJOR:MINOR`, as sysfs and device-mapper tables write it.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim_end().split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_hold_twenty_bit_minors() {
        for number in [(8, 1), (253, 255), (253, 256), (259, 0xf_ffff)]
            .map(|(major, minor)| DeviceNumber { major, minor })
        {
            assert_eq!(DeviceNumber::from_kernel(number.to_kernel()), number);
            assert_eq!(
                DeviceNumber::from_stat(libc::makedev(number.major, number.minor)),
                number
            );
            assert_eq!(DeviceNumber::parse(&format!("{number}\n")), Some(number));
        }
        assert_eq!(DeviceNumber::parse("8"), None);
    }
}
