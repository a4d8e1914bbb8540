//! Images that were left unfinished, and end as if they had not been.

use std::collections::BTreeMap;

use volmap::range::ByteRange;

use super::{Stretch, decode, header, stretch, volume};
use crate::image::{
    Checkpoint, Content, DEFAULT_LEVEL, Encoder, End, Found, ImageError, Kind, LEAF, Record, Totals,
    UnfinishedImage, compress_piece,
};

/// Checkpoints stand behind every so many bytes of the volume.
const EVERY: u64 = 2 * LEAF;

fn totals(position: u64) -> Totals {
    Totals {
        moved: position,
        remapped_direct: position / 2,
        validations: position / LEAF,
    }
}

fn noted(position: u64) -> Checkpoint {
    Checkpoint {
        totals: totals(position),
        audited: position + 1,
        reasons: BTreeMap::from([("the host gives no location for it".to_owned(), position)]),
    }
}

/// The rest of an image, leaf by leaf, from where the encoder stands.
fn rest(mut encoder: Encoder, records: &[Record], plain: &[u8]) -> (Vec<u8>, End) {
    let mut image = Vec::new();
    let mut at = encoder.position();
    while let Some(range) = ByteRange::from_bounds(at, (plain.len() as u64).min(at + LEAF)) {
        let records = super::super::record::clip(records, range);
        let content = if records.iter().any(|record| record.kind == Kind::Data) {
            let bytes = usize::try_from(at).unwrap()..usize::try_from(range.end()).unwrap();
            Content::Bytes(&plain[bytes])
        } else {
            Content::Zeroes
        };
        let piece = compress_piece(range, content, &records, DEFAULT_LEVEL);
        image.extend(encoder.append(piece).unwrap().concat());
        at = range.end();
        if at.is_multiple_of(EVERY) {
            image.extend(encoder.flush().unwrap().concat());
            image.extend_from_slice(&encoder.checkpoint(&noted(at)));
        }
    }
    let (last, end) = encoder.finish(totals(at)).unwrap();
    image.extend(last.concat());
    (image, end)
}

/// An image with checkpoints, its volume and its END.
pub(super) fn with_checkpoints(stretches: &[Stretch]) -> (Vec<u8>, Vec<u8>, End) {
    let (records, plain) = volume(stretches);
    let (encoder, first) = Encoder::new(&header(plain.len() as u64));
    let (more, end) = rest(encoder, &records, &plain);
    ([&first[..], &more].concat(), plain, end)
}

/// The frames of an image.
fn parts(image: &[u8]) -> Vec<&[u8]> {
    super::frames(image)
        .into_iter()
        .map(|frame| &image[frame])
        .collect()
}

fn stretches() -> Vec<Stretch> {
    vec![
        stretch(LEAF + 100, Kind::Data, 3),
        stretch(LEAF - 200, Kind::Unreadable, 0),
        stretch(2 * LEAF + 100, Kind::Hole, 0),
        stretch(3 * LEAF, Kind::Data, 9),
        stretch(77, Kind::Zero, 0),
    ]
}

/// Reads what is there, and gives what a resumed writer makes of it; `Err` where there is nothing to go on from.
fn resumed(there: &[u8], step: usize) -> Result<(Vec<u8>, u64), ImageError> {
    let (records, plain) = volume(&stretches());
    let mut unfinished = UnfinishedImage::new();
    'file: for bytes in there.chunks(step) {
        unfinished.decoder().push(bytes);
        loop {
            match unfinished.decoder().next_event() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => break 'file,
            }
        }
    }
    match unfinished.finish()? {
        Found::Whole(_) => Ok((there.to_vec(), plain.len() as u64)),
        Found::Unfinished(resumption) => {
            let (at, position) = (resumption.at(), resumption.position());
            if position > 0 {
                assert_eq!(resumption.checkpoint(), noted(position));
            }
            let tally = resumption.tally();
            assert_eq!(tally.data + tally.zero + tally.hole + tally.unreadable, position);
            let mut image = there[..usize::try_from(at).unwrap()].to_vec();
            let (encoder, first) = resumption.into_encoder();
            assert_eq!(encoder.position(), position);
            image.extend_from_slice(&first);
            image.extend(rest(encoder, &records, &plain).0);
            Ok((image, position))
        }
    }
}

#[test]
fn wherever_an_image_is_cut_it_ends_as_if_it_had_not_been() {
    let (image, plain, end) = with_checkpoints(&stretches());
    assert_eq!(decode(&image).unwrap().end, end);
    let header_end = parts(&image)[0].len();
    let mut positions = std::collections::BTreeSet::new();
    // The data of a leaf is many bytes alike: the ends of frames and some places between are enough.
    let ends: Vec<usize> = super::frames(&image).iter().map(|frame| frame.end).collect();
    for length in 0..=image.len() {
        let near = ends.iter().any(|end| end.abs_diff(length) < 3);
        if !near && length % 997 != 0 {
            continue;
        }
        let cut = resumed(&image[..length], 1 << 20);
        if length < header_end {
            assert!(cut.is_err(), "{length}");
            continue;
        }
        let (resumed, position) = cut.unwrap();
        assert!(resumed == image, "cut at {length}");
        positions.insert(position);
    }
    // From the header, from every checkpoint, and what was whole.
    let checkpoints = plain.len() as u64 / EVERY;
    assert_eq!(positions.len() as u64, checkpoints + 2);
}

/// After a crash of the machine anything may stand where nothing was synced.
#[test]
fn what_stands_behind_the_last_checkpoint_does_not_matter() {
    let (image, ..) = with_checkpoints(&stretches());
    let frames = parts(&image);
    let mut at = 0;
    for frame in &frames {
        for (garbage, byte) in [(0, 0), (1, 0), (7, 0x50), (100_000, 0), (100_000, 0xff)] {
            let mut there = image[..at].to_vec();
            there.resize(at + garbage, byte);
            if at == 0 {
                assert!(resumed(&there, 4096).is_err());
            } else {
                assert!(resumed(&there, 4096).unwrap().0 == image);
            }
        }
        at += frame.len();
    }
}

/// A byte that changed before a checkpoint takes what follows with it, checkpoint or not.
#[test]
fn nothing_is_kept_that_is_not_as_it_was_written() {
    let (image, ..) = with_checkpoints(&stretches());
    let header_end = parts(&image)[0].len();
    for at in (0..image.len()).step_by(313) {
        let mut changed = image.clone();
        changed[at] ^= 1;
        match resumed(&changed, 1 << 20) {
            Ok((resumed, _)) => assert!(at >= header_end && resumed == image, "byte {at}"),
            Err(_) => assert!(at < header_end, "byte {at}"),
        }
    }
}

#[test]
fn a_checkpoint_in_a_wrong_place_is_refused() {
    let (image, ..) = with_checkpoints(&stretches());
    let frames = parts(&image);
    let is_checkpoint = |frame: &[u8]| frame.get(8..12) == Some(b"VBIC");
    let checkpoints: Vec<usize> = (0..frames.len()).filter(|&n| is_checkpoint(frames[n])).collect();
    assert!(checkpoints.len() >= 2);
    let mut swapped = frames.clone();
    swapped.swap(checkpoints[0], checkpoints[1]);
    let error = decode(&swapped.concat()).unwrap_err();
    assert!(matches!(error, ImageError::Checkpoint { .. }), "{error:?}");
    // One that is left out shows in the seek table.
    let mut fewer = frames;
    fewer.remove(checkpoints[0]);
    assert!(decode(&fewer.concat()).is_err());
}

#[test]
fn reasons_are_bounded() {
    let mut encoder = Encoder::new(&header(LEAF)).0;
    let reasons = (0..10_000).map(|n| (format!("reason {n:030}"), n)).collect();
    let frame = encoder.checkpoint(&Checkpoint {
        reasons,
        ..Checkpoint::default()
    });
    assert!(frame.len() < (64 << 10) + 200);
}
