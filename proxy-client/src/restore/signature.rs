//! Signatures by which a device that holds something is known.

/// Bytes at the beginning and at the end of a device that are looked at.
pub(crate) const LOOKED_AT: u64 = 1 << 20;

/// A signature at a fixed place: offset from the beginning, bytes, what it means.
const AT_BEGINNING: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0x4000, b"SKUL\xba\xbe", "a LUKS volume"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (0x438, b"\x53\xef", "an ext file system"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (0x36, b"FAT1", "a FAT file system"),
    (0x52, b"FAT32", "a FAT file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (4096 - 10, b"SWAP-SPACE", "swap space"),
    (16384 - 10, b"SWAPSPACE2", "swap space"),
    (65536 - 10, b"SWAPSPACE2", "swap space"),
    // After what is more exact: many boot sectors end so.
    (510, b"\x55\xaa", "an MBR partition table or boot sector"),
];

/// What a device of `size` bytes with these first and last bytes (up to [`LOOKED_AT`] of each) seems to hold.
pub(crate) fn find(first: &[u8], last: &[u8], size: u64) -> Option<&'static str> {
    let has =
        |bytes: &[u8], at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    // The label of an LVM physical volume is in one of the first four sectors.
    if (0..4).any(|sector| has(first, sector * 512, b"LABELONE")) {
        return Some("an LVM physical volume");
    }
    if let Some((_, _, what)) = AT_BEGINNING.iter().find(|(at, magic, _)| has(first, *at, magic)) {
        return Some(what);
    }
    let in_last = |at: u64| {
        let last_at = size - last.len() as u64;
        at.checked_sub(last_at).and_then(|at| usize::try_from(at).ok())
    };
    let at_end = [
        (size.checked_sub(512), &b"EFI PART"[..], "a GPT partition table"),
        (size.checked_sub(4096), b"EFI PART", "a GPT partition table"),
        // md metadata 1.0 is 8 KiB before the end, rounded down to 4 KiB; 0.90 in the last whole 64 KiB.
        (
            size.checked_sub(8192).map(|at| at & !4095),
            b"\xfc\x4e\x2b\xa9",
            "a member of an md array",
        ),
        (
            (size & !0xffff).checked_sub(0x1_0000),
            b"\xfc\x4e\x2b\xa9",
            "a member of an md array",
        ),
    ];
    at_end
        .into_iter()
        .find(|(at, magic, _)| at.and_then(in_last).is_some_and(|at| has(last, at, magic)))
        .map(|(_, _, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 8 << 20;

    fn found(put: &[(usize, &[u8])]) -> Option<&'static str> {
        let mut disk = vec![0; SIZE];
        for (at, bytes) in put {
            disk[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        let looked = usize::try_from(LOOKED_AT).unwrap();
        find(&disk[..looked], &disk[SIZE - looked..], SIZE as u64)
    }

    #[test]
    fn each_signature_is_found() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[(100, b"XFSB")]), None);
        for (at, magic, what) in AT_BEGINNING {
            assert_eq!(found(&[(*at, magic)]), Some(*what));
        }
        for sector in 0..4 {
            assert_eq!(
                found(&[(sector * 512, b"LABELONE")]),
                Some("an LVM physical volume")
            );
        }
        for (before_end, magic, what) in [
            (512, &b"EFI PART"[..], "a GPT partition table"),
            (8192, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
            (65536, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
        ] {
            assert_eq!(found(&[(SIZE - before_end, magic)]), Some(what));
        }
    }

    #[test]
    fn small_devices_do_not_trip_it() {
        for size in [0, 1, 511, 512, 4096, 8191, 70_000] {
            let disk = vec![0; size];
            assert_eq!(find(&disk, &disk, size as u64), None);
        }
    }

    /// What mkfs writes, where its programs are installed.
    #[test]
    fn real_file_systems_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for (program, arguments, what) in [
            ("mkfs.ext4", &["-q", "-F"][..], "an ext file system"),
            ("mkfs.xfs", &["-q", "-f"], "an XFS file system"),
            ("mkswap", &[], "swap space"),
        ] {
            let path = dir.path().join(program);
            std::fs::File::create(&path).unwrap().set_len(320 << 20).unwrap();
            let made = std::process::Command::new(program)
                .args(arguments)
                .arg(&path)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status();
            if !made.is_ok_and(|status| status.success()) {
                eprintln!("skipped: {program} does not work here");
                continue;
            }
            let disk = std::fs::read(&path).unwrap();
            let looked = usize::try_from(LOOKED_AT).unwrap();
            let found = find(&disk[..looked], &disk[disk.len() - looked..], disk.len() as u64);
            assert_eq!(found, Some(what));
        }
    }
}
