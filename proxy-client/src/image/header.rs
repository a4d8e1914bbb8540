//! The HEADER frame: which volume, frozen when and how, read from where.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;
use volmap::identity::Identity;

use super::error::ImageError;
use super::frame::{Checked, Payload, array_at, u32_at, u64_at};
use super::hash::Root;
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

/// What the job was told: with it, an unfinished image is resumed without being told again. Nothing in it is secret.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobRecord {
    /// The export of the frozen image, an NBD URI.
    pub uri: String,
    /// Smallest share of the data, in percent, that has to be read directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_direct: Option<f64>,
    /// Share of the direct data, in percent, that is compared with the host's.
    #[serde(default)]
    pub audit_percent: f64,
    /// Data that cannot be read directly ends the job.
    #[serde(default)]
    pub no_fallback: bool,
    /// The LUNs as they were given, with all their paths and what may be read of them.
    #[serde(default)]
    pub luns: Vec<String>,
    /// Names of LUNs that an audit found to differ from what the host reads. They are not read any more, wherever they are found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distrusted: Vec<String>,
    /// Where the image was that this one continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The dirty bitmap of QEMU that told what changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<String>,
}

/// The image that an incremental one continues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParentRecord {
    /// Its frozen image.
    pub frozen: Uuid,
    /// Its root.
    pub root: Root,
}

/// What an image says of itself before its first byte of data.
#[derive(Clone, PartialEq, Debug)]
pub struct Header {
    /// Drawn at random for this image; ties its frames together.
    pub image: Uuid,
    /// The frozen image that was read; nil where the server names none.
    pub frozen: Uuid,
    /// The image that this one continues; `None` for a full one.
    pub parent: Option<ParentRecord>,
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
    /// What the job was told.
    pub job: Option<JobRecord>,
}

/// The text part of the header.
#[derive(Serialize, Deserialize)]
struct Text {
    volume: String,
    description: String,
    stores: Vec<StoreRecord>,
    luns: Vec<LunRecord>,
    software: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    job: Option<JobRecord>,
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
            job: self.job.clone(),
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
        let version = layout::version(self.parent.is_some());
        let mut payload = Payload::new(layout::HEADER_TAG, version, field::LEN, text.len());
        payload.put(field::IMAGE, self.image.as_bytes());
        payload.put(field::FROZEN, self.frozen.as_bytes());
        if let Some(parent) = &self.parent {
            payload.put(field::PARENT_FROZEN, parent.frozen.as_bytes());
            payload.put(field::PARENT_ROOT, parent.root.as_bytes());
        }
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
        let parent = ParentRecord {
            frozen: Uuid::from_bytes(array_at(bytes, field::PARENT_FROZEN)),
            root: Root::from_bytes(array_at(bytes, field::PARENT_ROOT)),
        };
        let has_parent = !parent.frozen.is_nil() || parent.root.as_bytes() != &[0; 32];
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
            parent: has_parent.then_some(parent),
            size,
            created: i64::from_le_bytes(array_at(bytes, field::CREATED)),
            volume: text.volume,
            description: text.description,
            stores: text.stores,
            luns: text.luns,
            software: text.software,
            job: text.job,
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
