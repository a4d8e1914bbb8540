//! The names that a SCSI disk has for itself, in the Device Identification page (83h) of its vital product data (SPC-5, 7.7.6).

use crate::identity::Identity;

/// Kinds of names, the best last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    /// Vendor, and what the vendor says: taken only if that has the serial number in it.
    Vendor,
    /// 8, 12 or 16 bytes with the number of a manufacturer.
    Eui,
    /// NAA of type 2 or 3: short, or made up locally.
    NaaLocal,
    /// NAA of type 5.
    NaaRegistered,
    /// NAA of type 6: 16 bytes.
    NaaExtended,
}

/// The designator that names the disk best: NAA of type 6, 5, 3 or 2, then EUI-64, then vendor and serial number. `None` where there is
/// none of these, the page is of something else, or it is cut.
pub(super) fn best_designator(page: &[u8], serial: Option<&str>) -> Option<Identity> {
    let usable = |(rank, text, _): &(Rank, String, Identity)| {
        *rank != Rank::Vendor || serial.is_some_and(|serial| text.contains(serial))
    };
    let designators = designators(page)?;
    // Of several of a rank the first, as it is the first everywhere.
    let best = designators
        .into_iter()
        .filter(usable)
        .rev()
        .max_by_key(|(rank, ..)| *rank);
    best.map(|(.., identity)| identity)
}

/// All names of a disk.
pub(super) fn all(page: &[u8]) -> impl Iterator<Item = Identity> {
    let designators = designators(page).unwrap_or_default();
    designators.into_iter().map(|(.., identity)| identity)
}

/// The serial number of page 80h, without the blanks around it.
pub(super) fn unit_serial(page: &[u8]) -> Option<String> {
    let text = body(page, 0x80)?;
    let text = printable(text)?;
    (!text.is_empty()).then_some(text)
}

/// What a page of that number holds behind its header.
fn body(page: &[u8], number: u8) -> Option<&[u8]> {
    let [peripheral, code, high, low, rest @ ..] = page else {
        return None;
    };
    // The upper three bits: something other than a device that is there.
    let connected = peripheral >> 5 == 0;
    (connected && *code == number).then_some(())?;
    rest.get(..usize::from(u16::from_be_bytes([*high, *low])))
}

/// The designators of the disk itself, those of its ports and target left out; with their text, if they are text.
fn designators(page: &[u8]) -> Option<Vec<(Rank, String, Identity)>> {
    let mut rest = body(page, 0x83)?;
    let mut found = Vec::new();
    while let [code_set, kind, _, len, behind @ ..] = rest {
        let value = behind.get(..usize::from(*len))?;
        rest = behind.get(usize::from(*len)..)?;
        let of_disk = kind >> 4 & 0b11 == 0;
        if of_disk && let Some((rank, kind, value)) = name(code_set & 0xf, kind & 0xf, value) {
            let identity = Identity::new(kind, &value).ok()?;
            found.push((rank, value, identity));
        }
    }
    rest.is_empty().then_some(found)
}

/// Rank, type and value of one designator.
fn name(code_set: u8, kind: u8, value: &[u8]) -> Option<(Rank, &'static str, String)> {
    const BINARY: u8 = 1;
    let is_blank = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);
    match (kind, code_set) {
        (1, 2 | 3) => {
            let text = printable(value)?;
            // Eight bytes are the vendor alone.
            (text.len() > 8).then_some((Rank::Vendor, "t10", text))
        }
        (2, BINARY) => {
            let fits = [8, 12, 16].contains(&value.len()) && !is_blank(value);
            fits.then(|| (Rank::Eui, "eui", hex(value)))
        }
        (3, BINARY) => {
            let rank = match (value.first()? >> 4, value.len()) {
                (6, 16) => Rank::NaaExtended,
                (5, 8) => Rank::NaaRegistered,
                (2 | 3, 8) => Rank::NaaLocal,
                _ => return None,
            };
            // A type, and nothing but zeroes behind it, is what was never set.
            let set = value[0] & 0xf != 0 || !is_blank(&value[1..]);
            set.then(|| (rank, "naa", hex(value)))
        }
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text without the blanks and zero bytes around it.
fn printable(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(text.trim_matches(|c: char| c == ' ' || c == '\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn best(page: &str, serial: Option<&str>) -> Option<String> {
        best_designator(&bytes(page), serial).map(|identity| identity.to_string())
    }

    /// A SAS disk: its NAA, then the NAA of a port, the number of the port, the NAA of the target, and a name string.
    const SAS_DISK: &str = "00 83 00 48 01 03 00 08 50 00 c5 00 30 11 cb 2b 61 93 00 08 50 00 c5 00 30 11 cb 29 \
                            61 94 00 04 00 00 00 01 61 a3 00 08 50 00 c5 00 30 11 cb 28 \
                            03 28 00 18 6e 61 61 2e 35 30 30 30 43 35 30 30 33 30 31 31 43 42 32 42 00 00 00 00";

    /// A LUN of an array: NAA of type 6, relative port, port group.
    const ARRAY_LUN: &str = "00 83 00 24 01 03 00 10 60 00 40 20 01 f4 5e b5 66 d4 1c d1 00 00 00 00 \
                             01 14 00 04 00 00 00 01 01 15 00 04 00 00 00 00";

    /// A disk of QEMU with a WWN: its serial number, vendor specific, and the NAA.
    const QEMU_DISK: &str =
        "00 83 00 18 02 00 00 08 53 45 52 49 41 4c 30 31 01 03 00 08 50 00 c5 00 de ad be ef";

    /// A LUN of LIO without its NAA: vendor and serial number, and an association with the target that must not count.
    fn vendor_and_serial() -> String {
        let text = "LIO-ORG vol0:6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let mut page = vec![0x02, 0x01, 0x00, u8::try_from(text.len()).unwrap()];
        page.extend(text.bytes());
        page.extend([0x01, 0x23, 0x00, 0x08, 0x50, 1, 2, 3, 4, 5, 6, 7]);
        let len = u16::try_from(page.len()).unwrap().to_be_bytes();
        hex(&[&[0, 0x83, len[0], len[1]][..], &page].concat())
    }

    #[test]
    fn the_best_name_of_the_disk_itself_is_taken() {
        assert_eq!(best(SAS_DISK, None).as_deref(), Some("naa:5000c5003011cb2b"));
        assert_eq!(
            best(ARRAY_LUN, None).as_deref(),
            Some("naa:6000402001f45eb566d41cd100000000")
        );
        assert_eq!(best(QEMU_DISK, None).as_deref(), Some("naa:5000c500deadbeef"));
    }

    #[test]
    fn types_of_names_have_an_order_whatever_theirs_in_the_page_is() {
        let names = [
            (
                "02 01 00 0c 41 43 4d 45 20 20 20 20 53 4e 30 31",
                "t10:ACME%20%20%20%20SN01",
            ),
            ("01 02 00 08 00 25 38 5b 71 b0 a1 c3", "eui:0025385b71b0a1c3"),
            ("01 03 00 08 30 00 00 00 00 00 00 07", "naa:3000000000000007"),
            ("01 03 00 08 50 00 00 00 00 00 00 07", "naa:5000000000000007"),
            (
                "01 03 00 10 60 00 00 00 00 00 00 07 00 00 00 00 00 00 00 01",
                "naa:60000000000000070000000000000001",
            ),
        ];
        for taken in 0..names.len() {
            for backwards in [false, true] {
                let mut listed: Vec<Vec<u8>> = names[..=taken].iter().map(|(name, _)| bytes(name)).collect();
                if backwards {
                    listed.reverse();
                }
                let body = listed.concat();
                let page = [&[0, 0x83, 0, u8::try_from(body.len()).unwrap()][..], &body].concat();
                let best = best_designator(&page, Some("SN01")).unwrap();
                assert_eq!(best.as_str(), names[taken].1);
            }
        }
    }

    #[test]
    fn a_vendor_counts_only_with_the_serial_number() {
        let page = vendor_and_serial();
        assert_eq!(best(&page, None), None);
        assert_eq!(best(&page, Some("another")), None);
        assert_eq!(
            best(&page, Some("6ba7b810-9dad-11d1-80b4-00c04fd430c8")).as_deref(),
            Some("t10:LIO-ORG%20vol0:6ba7b810-9dad-11d1-80b4-00c04fd430c8")
        );
    }

    #[test]
    fn names_that_were_never_set_do_not_count() {
        for page in [
            "00 83 00 0c 01 03 00 08 50 00 00 00 00 00 00 00",
            "00 83 00 0c 01 02 00 08 00 00 00 00 00 00 00 00",
            "00 83 00 0c 01 03 00 08 00 00 c5 00 30 11 cb 2b",
            "00 83 00 0c 02 03 00 08 50 00 c5 00 30 11 cb 2b",
            "00 83 00 00",
        ] {
            assert_eq!(best(page, None), None, "{page}");
        }
    }

    #[test]
    fn a_page_that_is_cut_or_of_something_else_names_nothing() {
        let whole = bytes(SAS_DISK);
        for len in 0..whole.len() {
            assert_eq!(best_designator(&whole[..len], None), None, "{len}");
        }
        let mut other = whole.clone();
        other[1] = 0x80;
        assert_eq!(best_designator(&other, None), None);
        let mut not_there = whole;
        not_there[0] = 0x20;
        assert_eq!(best_designator(&not_there, None), None);
        // A designator that says it is longer than the page.
        assert_eq!(
            best("00 83 00 0c 01 03 00 09 50 00 c5 00 30 11 cb 2b", None),
            None
        );
    }

    #[test]
    fn a_serial_number_has_no_blanks_around_it() {
        assert_eq!(
            unit_serial(b"\x00\x80\x00\x08 SN001\x00\x00").as_deref(),
            Some("SN001")
        );
        assert_eq!(unit_serial(b"\x00\x80\x00\x04    "), None);
        assert_eq!(unit_serial(b"\x00\x80\x00\x08short"), None);
    }
}
