//! The HEADER frame: which volume, frozen when and how, read from where.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;
use volmap::identity::Identity;

use super::error::ImageError;
use super::frame::{Checked, Payload, array_at, u32_at, u64_at};
use super::layout::{self, LEAF, header as field};
use super::limits::{HEADER_TEXT_MAX, VOLUME_MAX};

/// A store of the chain under the frozen image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreRecord {
    /// Distance from the frozen image, 0 the nearest; `None` for a disk.
    pub depth: Option<u16>,
    /// Its name for good.
    #[serde(with = "identity_text")]
    pub identity: Identity,
}

/// How it was proven that a path on the proxy is the disk that the host means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum LunProof {
    /// A nonce written by the host was found on it, and samples agreed.
    #[serde(rename = "tag")]
    Tag,
    /// Samples read both ways agreed: a fresh clone of the disk would have passed too.
    #[serde(rename = "sampled only")]
    SampledOnly,
}

impl std::fmt::Display for LunProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tag => "tag",
            Self::SampledOnly => "sampled only",
        })
    }
}

/// A LUN that was read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LunRecord {
    /// Its name for good.
    #[serde(with = "identity_text")]
    pub identity: Identity,
    /// How that was proven.
    pub proof: LunProof,
    /// Where the proxy found it.
    pub path: String,
}

/// What an image says of itself before its first byte of data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Drawn at random for this image; ties its frames together.
    pub image: Uuid,
    /// The frozen image that was read; nil where the server names none.
    pub frozen: Uuid,
    /// Size of the volume in bytes.
    pub size: u64,
    /// When the backup began, in seconds since 1970-01-01T00:00:00Z.
    pub created: i64,
    /// Name of the volume or export.
    pub volume: String,
    /// What the server says of the frozen image: method, strength, stability, attestation.
    pub description: String,
    /// The chain of stores.
    pub stores: Vec<StoreRecord>,
    /// The LUNs that were read; receipts refer to them by index.
    pub luns: Vec<LunRecord>,
    /// The program that wrote the image, with its version.
    pub software: String,
}

/// The text part of the header.
#[derive(Serialize, Deserialize)]
struct Text {
    volume: String,
    description: String,
    stores: Vec<StoreRecord>,
    luns: Vec<LunRecord>,
    software: String,
}

impl Header {
    /// Whether it keeps to limits.rs. Much of it is a host's word, so it is asked before [`super::Encoder::new`].
    pub fn fits(&self) -> bool {
        self.size <= VOLUME_MAX && self.text().len() <= HEADER_TEXT_MAX
    }

    fn text(&self) -> Vec<u8> {
        let text = Text {
            volume: self.volume.clone(),
            description: self.description.clone(),
            stores: self.stores.clone(),
            luns: self.luns.clone(),
            software: self.software.clone(),
        };
        serde_json::to_vec(&text).expect("strings and numbers have a JSON form")
    }

    /// The frame, and the key of all later ones.
    ///
    /// # Panics
    /// It does not fit ([`Self::fits`]).
    pub(super) fn encode(&self) -> Bytes {
        assert!(self.size <= VOLUME_MAX, "the size of a volume fits a file offset");
        let text = self.text();
        assert!(text.len() <= HEADER_TEXT_MAX, "the descriptive text is short");
        let mut payload = Payload::new(layout::HEADER_TAG, field::LEN, text.len());
        payload.put(field::IMAGE, self.image.as_bytes());
        payload.put(field::FROZEN, self.frozen.as_bytes());
        payload.put_u64(field::SIZE, self.size);
        payload.put(field::CREATED, &self.created.to_le_bytes());
        payload.put_u32(field::LEAF_SIZE, layout::in_u32(LEAF));
        payload.put_u32(field::TEXT_LENGTH, layout::in_u32(text.len() as u64));
        payload.extend(&text);
        payload.seal(None)
    }

    pub(super) fn decode(payload: &Checked<'_>) -> Result<Self, ImageError> {
        let bytes = payload.bytes;
        if bytes.len() < field::LEN {
            return Err(ImageError::FrameLength { at: 0 });
        }
        let text = &bytes[field::LEN..];
        if text.len() != u32_at(bytes, field::TEXT_LENGTH) as usize {
            return Err(ImageError::FrameLength { at: 0 });
        }
        let parent = Uuid::from_bytes(array_at(bytes, field::PARENT_FROZEN));
        if !parent.is_nil() || bytes[field::PARENT_ROOT] != [0; 32] {
            return Err(ImageError::Incremental { parent });
        }
        let leaf = u32_at(bytes, field::LEAF_SIZE);
        if u64::from(leaf) != LEAF {
            return Err(ImageError::LeafSize { size: leaf });
        }
        let size = u64_at(bytes, field::SIZE);
        if size > VOLUME_MAX {
            return Err(ImageError::VolumeTooLarge { size });
        }
        let text: Text = serde_json::from_slice(text).map_err(|_| ImageError::HeaderText)?;
        Ok(Self {
            image: Uuid::from_bytes(array_at(bytes, field::IMAGE)),
            frozen: Uuid::from_bytes(array_at(bytes, field::FROZEN)),
            size,
            created: i64::from_le_bytes(array_at(bytes, field::CREATED)),
            volume: text.volume,
            description: text.description,
            stores: text.stores,
            luns: text.luns,
            software: text.software,
        })
    }
}

/// Identities as the text that they travel in.
mod identity_text {
    use super::{Deserialize, Deserializer, Identity, Serializer};

    pub(super) fn serialize<S: Serializer>(identity: &Identity, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(identity.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Identity, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
