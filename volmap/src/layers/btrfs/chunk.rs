//! Items of the chunk tree: where a stretch of the address space of a file system lies on its devices.

use uuid::Uuid;

use crate::range::ByteRange;

/// Kinds and profiles (`btrfs_tree.h`).
const DATA: u64 = 1 << 0;
const KINDS: u64 = 0b111;
const RAID0: u64 = 1 << 3;
const RAID1: u64 = 1 << 4;
const DUP: u64 = 1 << 5;
const RAID10: u64 = 1 << 6;
const RAID5: u64 = 1 << 7;
const RAID6: u64 = 1 << 8;
const RAID1C3: u64 = 1 << 9;
const RAID1C4: u64 = 1 << 10;

/// Bytes before the first stripe of an item, and of a stripe.
const HEAD: usize = 48;
const STRIPE: usize = 32;

/// Where a chunk lies on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stripe {
    /// The number of the device.
    pub(super) device: u64,
    /// Byte offset on it.
    pub(super) offset: u64,
    /// The UUID of the device.
    pub(super) uuid: Uuid,
}

/// A chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    /// Addresses of the file system.
    pub(super) range: ByteRange,
    kind: u64,
    /// Bytes that lie in one piece where chunks are striped.
    pub(super) stripe_len: u64,
    mirrors: u16,
    stripes: Vec<Stripe>,
}

/// Why a chunk is not followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(in crate::layers) enum Profile {
    #[error(
        "its data has parity (raid5 or raid6), which is not followed; btrfs balance start -dconvert=raid1 changes that"
    )]
    Parity,
    #[error("its data has a profile that is not understood")]
    Unknown,
}

impl Chunk {
    /// From an item: length, owner, stripe length and type (u64), alignment, width and sector size (u32), number of stripes and of mirrors
    /// in a group (u16), and the stripes: device, offset (u64), UUID of the device.
    pub(super) fn parse(address: u64, item: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(*item.get(at..)?.first_chunk()?));
        let u16_at = |at: usize| Some(u16::from_le_bytes(*item.get(at..)?.first_chunk()?));
        let count = usize::from(u16_at(44)?);
        let stripes = (0..count)
            .map(|number| {
                let at = HEAD + STRIPE * number;
                Some(Stripe {
                    device: u64_at(at)?,
                    offset: u64_at(at + 8)?,
                    uuid: Uuid::from_slice(item.get(at + 16..at + 32)?).ok()?,
                })
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self {
            range: ByteRange::new(address, u64_at(0)?)?,
            kind: u64_at(24)?,
            stripe_len: u64_at(16)?,
            mirrors: u16_at(46)?,
            stripes,
        })
    }

    /// Whether it holds the bytes of files.
    pub(super) fn holds_data(&self) -> bool {
        self.kind & DATA != 0
    }

    /// The columns that its bytes are dealt out to, in turn; each as the places that all hold the same.
    pub(super) fn columns(&self) -> Result<Vec<&[Stripe]>, Profile> {
        let all = &self.stripes[..];
        let columns = match self.kind & !KINDS {
            0 if all.len() == 1 => vec![all],
            DUP | RAID1 | RAID1C3 | RAID1C4 => vec![all],
            RAID0 => all.chunks(1).collect(),
            RAID10 if self.mirrors > 0 && all.len().is_multiple_of(self.mirrors.into()) => {
                all.chunks(self.mirrors.into()).collect()
            }
            RAID5 | RAID6 => return Err(Profile::Parity),
            _ => return Err(Profile::Unknown),
        };
        if all.is_empty() {
            Err(Profile::Unknown)
        } else {
            Ok(columns)
        }
    }

    /// Every device that it lies on.
    pub(super) fn devices(&self) -> impl Iterator<Item = (u64, Uuid)> {
        self.stripes.iter().map(|stripe| (stripe.device, stripe.uuid))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::layers::btrfs) fn item(
        len: u64,
        kind: u64,
        mirrors: u16,
        stripes: &[(u64, u64)],
    ) -> Vec<u8> {
        let mut item = Vec::new();
        for number in [len, 2, 65536, kind] {
            item.extend(number.to_le_bytes());
        }
        for number in [65536_u32, 65536, 4096] {
            item.extend(number.to_le_bytes());
        }
        item.extend(u16::try_from(stripes.len()).unwrap().to_le_bytes());
        item.extend(mirrors.to_le_bytes());
        for &(device, offset) in stripes {
            item.extend(device.to_le_bytes());
            item.extend(offset.to_le_bytes());
            item.extend([u8::try_from(device).unwrap(); 16]);
        }
        item
    }

    fn columns(kind: u64, mirrors: u16, stripes: &[(u64, u64)]) -> Result<Vec<Vec<u64>>, Profile> {
        let chunk = Chunk::parse(1 << 20, &item(8 << 20, kind, mirrors, stripes)).unwrap();
        let devices = |column: &[Stripe]| column.iter().map(|stripe| stripe.device).collect();
        Ok(chunk.columns()?.into_iter().map(devices).collect())
    }

    #[test]
    fn profiles_deal_out_or_repeat() {
        let four = [(1, 10), (2, 20), (3, 30), (4, 40)];
        assert_eq!(columns(DATA, 1, &four[..1]), Ok(vec![vec![1]]));
        assert_eq!(
            columns(DATA | 4 | DUP, 1, &[(1, 10), (1, 99)]),
            Ok(vec![vec![1, 1]])
        );
        assert_eq!(columns(DATA | RAID1, 1, &four[..2]), Ok(vec![vec![1, 2]]));
        assert_eq!(columns(DATA | RAID1C3, 1, &four[..3]), Ok(vec![vec![1, 2, 3]]));
        assert_eq!(
            columns(DATA | RAID0, 1, &four[..3]),
            Ok(vec![vec![1], vec![2], vec![3]])
        );
        assert_eq!(columns(DATA | RAID10, 2, &four), Ok(vec![vec![1, 2], vec![3, 4]]));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let four = [(1, 10), (2, 20), (3, 30), (4, 40)];
        assert_eq!(columns(DATA | RAID5, 1, &four), Err(Profile::Parity));
        assert_eq!(columns(DATA | RAID6, 1, &four), Err(Profile::Parity));
        assert_eq!(columns(DATA | 1 << 11, 1, &four[..1]), Err(Profile::Unknown));
        assert_eq!(columns(DATA, 1, &four), Err(Profile::Unknown));
        assert_eq!(columns(DATA | RAID10, 3, &four), Err(Profile::Unknown));
        assert_eq!(columns(DATA | RAID10, 0, &four), Err(Profile::Unknown));
        assert_eq!(columns(DATA | RAID1, 1, &[]), Err(Profile::Unknown));
    }

    #[test]
    fn an_item_that_is_cut_is_no_chunk() {
        let whole = item(8 << 20, DATA | RAID0, 1, &[(1, 10), (2, 20)]);
        assert!(Chunk::parse(0, &whole).is_some());
        for len in 0..whole.len() {
            assert_eq!(Chunk::parse(0, &whole[..len]), None, "{len}");
        }
        assert_eq!(Chunk::parse(u64::MAX, &whole), None);
    }
}
