//! The order in which witnesses are asked, with a hold that does what the test says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use uuid::Uuid;

use super::*;
use crate::frozen::{Attestation, Strength};
use crate::identity::Identity;
use crate::layers::Layers;

const NEVER: usize = usize::MAX;

/// Counts the questions, and answers "lost" from some of them on.
struct Script {
    file: Arc<File>,
    content_asked: AtomicUsize,
    content_lost_from: AtomicUsize,
    mapping_lost: AtomicUsize,
    ended: AtomicUsize,
    for_ever: AtomicBool,
}

/// A hold that shares its script with the test.
struct Scripted(Arc<Script>);

impl Hold for Scripted {
    fn check_content(&self) -> Result<(), String> {
        let asked = self.0.content_asked.fetch_add(1, Ordering::SeqCst);
        if asked < self.0.content_lost_from.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err("the test took it".to_owned())
        }
    }

    fn check_mapping(&self) -> Result<(), String> {
        match self.0.mapping_lost.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err("the test moved it".to_owned()),
        }
    }

    fn let_openers_in(&self) {}

    fn end(&self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }

    fn file(&self) -> &Arc<File> {
        &self.0.file
    }

    fn is_for_ever(&self) -> bool {
        self.0.for_ever.load(Ordering::SeqCst)
    }
}

/// 8 KiB on a declared disk: a block of data, a hole.
fn image() -> (PinnedImage, Arc<Script>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8192).unwrap();
    file.as_file().write_all_at(&[7; 4096], 0).unwrap();
    let identity = Identity::from_operator("lun0").unwrap();
    let layers = Layers::new(vec![(file.path().into(), identity)]).unwrap();
    let mut graph = StoreGraph::new();
    let mapping = layers.map(&mut graph, file.as_file(), file.path()).unwrap();
    let script = Arc::new(Script {
        file: Arc::new(file.into_file()),
        content_asked: AtomicUsize::new(0),
        content_lost_from: AtomicUsize::new(NEVER),
        mapping_lost: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
        for_ever: AtomicBool::new(false),
    });
    let description = Description {
        uuid: Uuid::from_u128(1),
        method: "static",
        strength: Strength::CrashConsistent,
        stability: Stability::Pinned,
        attestation: Attestation::Witnessed,
        frozen_at: SystemTime::now(),
    };
    let frozen = Frozen {
        description,
        hold: Box::new(Scripted(Arc::clone(&script))),
        graph,
        mapping,
    };
    let clock = GenerationClock::start().unwrap();
    (PinnedImage::new(frozen, &clock).unwrap(), script)
}

fn status(image: &PinnedImage) -> Result<Vec<StatusExtent>, FrozenError> {
    image.status(ByteRange::new(0, 8192).unwrap(), 10)
}

#[test]
fn bytes_that_were_copied_while_the_content_was_lost_are_not_given_out() {
    let (image, script) = image();
    image.read_at(0, &mut [0; 16]).unwrap();
    // Good when the read begins, lost when the bytes have been copied.
    let asked = script.content_asked.load(Ordering::SeqCst);
    script.content_lost_from.store(asked + 1, Ordering::SeqCst);
    assert!(matches!(
        image.read_at(0, &mut [0; 16]),
        Err(FrozenError::Gone(_))
    ));
}

#[test]
fn whether_an_image_stands_is_asked_of_the_witness() {
    let (image, script) = image();
    let mut bytes = [0; 16];
    assert!(image.read_cached(0, &mut bytes).unwrap());
    assert_eq!(bytes, [7; 16]);
    image.stands().unwrap();
    let asked = script.content_asked.load(Ordering::SeqCst);
    script.content_lost_from.store(asked, Ordering::SeqCst);
    assert!(matches!(image.stands(), Err(FrozenError::Gone(_))));
}

#[test]
fn only_a_file_that_nobody_will_write_again_is_given_out() {
    let (image, script) = image();
    let range = ByteRange::new(0, 4096).unwrap();
    image.read_at(0, &mut [0; 4096]).unwrap();
    assert!(image.immutable_file(range).unwrap().is_none());
    script.for_ever.store(true, Ordering::SeqCst);
    // Before Linux 6.5 nobody can tell what is in the page cache, and everything is copied.
    if page_cache::is_cached(&script.file, 0, 4096).is_ok() {
        assert!(image.immutable_file(range).unwrap().is_some());
    }
}

#[test]
fn content_asks_no_witness_of_the_mapping() {
    let (image, script) = image();
    script.mapping_lost.store(1, Ordering::SeqCst);
    let all = ByteRange::new(0, 8192).unwrap();
    let contents = |limit| -> Vec<Content> {
        let extents = image.content(all, limit).unwrap();
        extents.iter().map(|e| e.content).collect()
    };
    assert_eq!(contents(10), [Content::Data, Content::Hole]);
    assert_eq!(contents(1), [Content::Data]);
    script.mapping_lost.store(0, Ordering::SeqCst);
    assert!(status(&image).unwrap()[0].generation.is_direct());
}

#[test]
fn lost_content_stays_lost_though_the_witness_comes_back() {
    let (image, script) = image();
    script.content_lost_from.store(0, Ordering::SeqCst);
    assert!(matches!(status(&image), Err(FrozenError::Gone(_))));
    script.content_lost_from.store(NEVER, Ordering::SeqCst);
    assert!(matches!(status(&image), Err(FrozenError::Gone(_))));
    assert!(matches!(image.read_at(0, &mut [0]), Err(FrozenError::Gone(_))));
}

#[test]
fn every_status_asks_both_witnesses_anew() {
    let (image, script) = image();
    let before = script.content_asked.load(Ordering::SeqCst);
    let first = status(&image).unwrap();
    assert!(script.content_asked.load(Ordering::SeqCst) > before);
    let contents: Vec<Content> = first.iter().map(|e| e.content).collect();
    assert_eq!(contents, [Content::Data, Content::Hole]);
    assert!(first.iter().all(|e| e.generation.is_direct()));

    script.mapping_lost.store(1, Ordering::SeqCst);
    let lost = status(&image).unwrap();
    assert!(
        lost.iter()
            .all(|e| !e.generation.is_direct() && e.place.is_none())
    );
    script.mapping_lost.store(0, Ordering::SeqCst);
    assert_eq!(status(&image).unwrap(), lost, "a lost mapping stays lost");
    image.read_at(0, &mut [0; 16]).unwrap();
}

#[test]
fn a_thawed_image_is_gone_and_gives_back_what_it_held() {
    let (image, script) = image();
    image.thaw();
    assert_eq!(script.ended.load(Ordering::SeqCst), 1);
    assert!(matches!(status(&image), Err(FrozenError::Gone(_))));
    assert!(matches!(image.read_at(0, &mut [0]), Err(FrozenError::Gone(_))));
}
