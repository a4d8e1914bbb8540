//! INQUIRY to a SCSI disk, past what the kernel remembers of it.

use std::fs::File;
use std::io;
use std::time::Duration;

use nix::libc;

use super::ioctl;

const SG_IO: libc::Ioctl = 0x2285;
const SG_DXFER_FROM_DEV: libc::c_int = -3;
const INQUIRY: u8 = 0x12;
/// Enable vital product data.
const EVPD: u8 = 1;

/// What every device gives at once; longer pages are asked for again.
const FIRST: u16 = 252;
const HEADER: usize = 4;

/// A disk that does not answer in this time is not there.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `sg_io_hdr_t` of `include/scsi/sg.h`.
#[repr(C)]
struct SgIoHdr {
    interface_id: libc::c_int,
    dxfer_direction: libc::c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: libc::c_int,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: libc::c_int,
    duration: u32,
    info: u32,
}

/// A page of the vital product data of a disk, with its header, as long as the disk says that it is.
///
/// # Errors
/// `ENOTTY`, `EINVAL`: not a SCSI device. `Unsupported`: the disk has no such page. Others of the way to the disk.
pub fn vital_product_data(file: &File, page: u8) -> io::Result<Vec<u8>> {
    let first = inquiry(file, page, FIRST)?;
    let Some([_, _, high, low]) = first.first_chunk::<HEADER>() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let len = usize::from(u16::from_be_bytes([*high, *low])) + HEADER;
    let mut whole = if len <= first.len() {
        first
    } else {
        inquiry(file, page, u16::try_from(len).map_err(io::Error::other)?)?
    };
    whole.truncate(len);
    Ok(whole)
}

fn inquiry(file: &File, page: u8, len: u16) -> io::Result<Vec<u8>> {
    let mut answer = vec![0; usize::from(len)];
    let mut sense = [0u8; 32];
    let [high, low] = len.to_be_bytes();
    let command = [INQUIRY, EVPD, page, high, low, 0];
    let mut header = SgIoHdr {
        interface_id: libc::c_int::from(b'S'),
        dxfer_direction: SG_DXFER_FROM_DEV,
        cmd_len: 6,
        mx_sb_len: 32,
        iovec_count: 0,
        dxfer_len: u32::from(len),
        dxferp: answer.as_mut_ptr(),
        cmdp: command.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: u32::try_from(TIMEOUT.as_millis()).unwrap_or(u32::MAX),
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the kernel writes the header, at most `dxfer_len` bytes to `dxferp`, and at most `mx_sb_len` to `sbp`: buffers of these
    // sizes that outlive the call; it reads `cmd_len` bytes from `cmdp`.
    unsafe { ioctl::with_argument(file, SG_IO, &mut header) }?;
    const CHECK_CONDITION: u8 = 2;
    if header.host_status != 0 {
        return Err(io::Error::other(format!(
            "no answer (host status {:#x})",
            header.host_status
        )));
    }
    match header.status {
        0 => {}
        CHECK_CONDITION => return Err(io::ErrorKind::Unsupported.into()),
        other => return Err(io::Error::other(format!("it answered with status {other:#x}"))),
    }
    let missing = usize::try_from(header.resid).unwrap_or_default();
    answer.truncate(usize::from(len).saturating_sub(missing));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<SgIoHdr>(), 88);
    }

    #[test]
    fn a_file_is_no_scsi_disk() {
        let file = tempfile::tempfile().unwrap();
        assert!(vital_product_data(&file, 0x83).is_err());
    }
}
