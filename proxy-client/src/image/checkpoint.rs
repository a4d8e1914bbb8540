//! The CHECKPOINT frame: everything before it was durable when it was written, and this much of the job was done.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::end::Totals;
use super::error::ImageError;
use super::frame::{Checked, Key, Payload, array_at, u32_at, u64_at};
use super::layout::{self, checkpoint as field};
use super::limits::CHECKPOINT_TEXT_MAX;

/// What only the job knows, up to a checkpoint: told to [`super::Encoder::checkpoint`], and given back to whoever resumes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checkpoint {
    /// What END will hold.
    pub totals: Totals,
    /// Bytes that were read both ways and were the same.
    pub audited: u64,
    /// Why data was not read directly, with the bytes that each reason stands for.
    pub reasons: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
struct Text {
    reasons: BTreeMap<String, u64>,
}

impl Checkpoint {
    /// The text part. Reasons come from the host too, so they are bounded: what does not fit is not kept.
    fn text(&self) -> Vec<u8> {
        let json = |value: &Text| serde_json::to_vec(value).expect("strings and numbers have a JSON form");
        let alone = |reason: &str, bytes: u64| {
            json(&Text {
                reasons: BTreeMap::from([(reason.to_owned(), bytes)]),
            })
        };
        let mut length = 0;
        let kept = self.reasons.iter().take_while(|(reason, bytes)| {
            length += alone(reason, **bytes).len();
            length <= CHECKPOINT_TEXT_MAX
        });
        json(&Text {
            reasons: kept.map(|(reason, bytes)| (reason.clone(), *bytes)).collect(),
        })
    }
}

/// Where in the volume and in the image a checkpoint stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) groups: u64,
    pub(super) position: u64,
    pub(super) frozen: Uuid,
}

pub(super) fn encode(checkpoint: &Checkpoint, place: Place, version: u32, key: Key) -> Bytes {
    let text = checkpoint.text();
    let mut payload = Payload::new(layout::CHECKPOINT_TAG, version, field::LEN, text.len());
    payload.put_u64(field::GROUPS, place.groups);
    payload.put_u64(field::POSITION, place.position);
    payload.put(field::FROZEN, place.frozen.as_bytes());
    payload.put_u64(field::MOVED, checkpoint.totals.moved);
    payload.put_u64(field::REMAPPED_DIRECT, checkpoint.totals.remapped_direct);
    payload.put_u64(field::VALIDATIONS, checkpoint.totals.validations);
    payload.put_u64(field::AUDITED, checkpoint.audited);
    payload.put_u32(field::TEXT_LENGTH, layout::in_u32(text.len() as u64));
    payload.extend(&text);
    payload.seal(key)
}

/// The checkpoint of a frame at byte `at` of the file, if it stands at `place`.
pub(super) fn decode(payload: &Checked<'_>, place: Place, at: u64) -> Result<Checkpoint, ImageError> {
    let bytes = payload.bytes;
    if bytes.len() < field::LEN
        || bytes.len() - field::LEN != u32_at(bytes, field::TEXT_LENGTH) as usize
        || bytes.len() - field::LEN > CHECKPOINT_TEXT_MAX
    {
        return Err(ImageError::FrameLength { at });
    }
    let found = Place {
        groups: u64_at(bytes, field::GROUPS),
        position: u64_at(bytes, field::POSITION),
        frozen: Uuid::from_bytes(array_at(bytes, field::FROZEN)),
    };
    if found != place {
        return Err(ImageError::Checkpoint { at });
    }
    let text: Text =
        serde_json::from_slice(&bytes[field::LEN..]).map_err(|_| ImageError::Checkpoint { at })?;
    Ok(Checkpoint {
        totals: Totals {
            moved: u64_at(bytes, field::MOVED),
            remapped_direct: u64_at(bytes, field::REMAPPED_DIRECT),
            validations: u64_at(bytes, field::VALIDATIONS),
        },
        audited: u64_at(bytes, field::AUDITED),
        reasons: text.reasons,
    })
}
