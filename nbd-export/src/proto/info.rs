//! What a server tells of an export: size, flags, block sizes, names.

use bytes::{BufMut, BytesMut};

use super::constants::InfoCode;
use super::error::{PeerMisbehaved, ProtocolError};
use super::fields::Fields;
use super::flags::TransmissionFlags;
use super::limits::{MAX_MINIMUM_BLOCK, MAX_PAYLOAD};
use super::text::{ExportName, printable};

/// The sizes that requests keep to ("Size constraints").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this power of two, at most 64 KiB.
    pub minimum: u32,
    /// Requests of multiples of this power of two are efficient.
    pub preferred: u32,
    /// Most data in one request or its reply.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// What holds when a server says nothing.
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: MAX_PAYLOAD,
        }
    }
}

impl BlockSizes {
    /// Whether the three sizes are legal and in order.
    pub fn are_legal(self) -> bool {
        self.minimum.is_power_of_two()
            && self.minimum <= MAX_MINIMUM_BLOCK
            && self.preferred.is_power_of_two()
            && self.preferred >= self.minimum.max(512)
            && self.maximum >= self.preferred
    }

    /// The longest data that fits one request: the server's maximum, and never more than ours.
    pub fn payload_limit(self) -> u32 {
        self.maximum.min(MAX_PAYLOAD)
    }
}

/// An export as a session sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Its own name, which may differ from the name that a client used.
    pub name: ExportName,
    /// Size in bytes.
    pub size: u64,
    /// What it can do. A catalogue gives all that the export can; the handshake takes away what the session did
    /// not negotiate.
    pub flags: TransmissionFlags,
    /// The sizes that requests keep to.
    pub block: BlockSizes,
    /// A text for humans, may be empty.
    pub description: String,
}

/// One `NBD_REP_INFO`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Info {
    /// Size and flags.
    Export {
        /// Size in bytes.
        size: u64,
        /// What the export can do.
        flags: TransmissionFlags,
    },
    /// The export's own name.
    Name(ExportName),
    /// A text for humans.
    Description(String),
    /// The sizes that requests keep to.
    BlockSize(BlockSizes),
    /// Something that this side does not know, to be ignored.
    Unknown(InfoCode),
}

impl Info {
    /// Appends the data of the reply.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Export { size, flags } => {
                out.put_u16(InfoCode::EXPORT.0);
                out.put_u64(*size);
                out.put_u16(flags.to_wire());
            }
            Self::Name(name) => {
                out.put_u16(InfoCode::NAME.0);
                out.put_slice(name.as_str().as_bytes());
            }
            Self::Description(text) => {
                out.put_u16(InfoCode::DESCRIPTION.0);
                out.put_slice(text.as_bytes());
            }
            Self::BlockSize(sizes) => {
                out.put_u16(InfoCode::BLOCK_SIZE.0);
                out.put_u32(sizes.minimum);
                out.put_u32(sizes.preferred);
                out.put_u32(sizes.maximum);
            }
            Self::Unknown(code) => out.put_u16(code.0),
        }
    }

    /// The information in the data of a reply.
    ///
    /// # Errors
    /// Malformed, or block sizes that are not legal.
    pub fn decode(data: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::of(data);
        let info = match InfoCode(fields.u16()?) {
            InfoCode::EXPORT => Self::Export {
                size: fields.u64()?,
                flags: TransmissionFlags::from_wire(fields.u16()?),
            },
            InfoCode::NAME => return Ok(Self::Name(ExportName::from_wire(fields.rest())?)),
            InfoCode::DESCRIPTION => return Ok(Self::Description(printable(fields.rest()))),
            InfoCode::BLOCK_SIZE => {
                let (minimum, preferred, maximum) = (fields.u32()?, fields.u32()?, fields.u32()?);
                let sizes = BlockSizes {
                    minimum,
                    preferred,
                    maximum,
                };
                if !sizes.are_legal() {
                    return Err(PeerMisbehaved::BadBlockSizes {
                        minimum,
                        preferred,
                        maximum,
                    }
                    .into());
                }
                Self::BlockSize(sizes)
            }
            code => return Ok(Self::Unknown(code)),
        };
        fields.end()?;
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_export_info() {
        let mut out = BytesMut::new();
        let info = Info::Export {
            size: 0x0102_0304_0506_0708,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY,
        };
        info.encode(&mut out);
        assert_eq!(out[..], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 3]);
        assert_eq!(Info::decode(&out), Ok(info));
    }

    #[test]
    fn a_wrong_length_is_refused() {
        assert!(Info::decode(&[0]).is_err());
        assert!(Info::decode(&[0; 11]).is_err());
        assert!(Info::decode(&[0; 12]).is_ok());
        assert!(Info::decode(&[0; 13]).is_err());
    }

    #[test]
    fn block_sizes_at_their_limits() {
        let legal = |minimum, preferred, maximum| {
            BlockSizes {
                minimum,
                preferred,
                maximum,
            }
            .are_legal()
        };
        assert!(legal(1, 512, 512));
        assert!(!legal(1, 256, 512));
        assert!(!legal(1, 512, 511));
        assert!(!legal(0, 512, 512));
        assert!(!legal(3, 512, 512));
        assert!(legal(65_536, 65_536, u32::MAX));
        assert!(!legal(131_072, 131_072, u32::MAX));
        assert!(!legal(4096, 512, u32::MAX));
    }

    proptest! {
        #[test]
        fn encode_decode_identity(size: u64, flags: u16, name in "[^\0]{0,64}", min in 0u32..=16, pref in 0u32..=8) {
            let minimum = 1 << min;
            let preferred = (minimum << pref).max(512);
            let infos = [
                Info::Export { size, flags: TransmissionFlags::from_wire(flags) },
                Info::Name(ExportName::new(&name).unwrap()),
                Info::Description(format!("{size} bytes")),
                Info::BlockSize(BlockSizes { minimum, preferred, maximum: preferred }),
            ];
            for info in infos {
                let mut out = BytesMut::new();
                info.encode(&mut out);
                prop_assert_eq!(Info::decode(&out), Ok(info));
            }
        }
    }
}
