//! The world of a test: a hold, and layers below that somebody moves.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use uuid::Uuid;

use crate::frozen::hold::Hold;
use crate::frozen::pinned::survey::Witness;
use crate::frozen::pinned::{Frozen, PinnedImage, Survey, SurveyAgain};
use crate::frozen::{Attestation, Description, FrozenError, FrozenImage, Stability, Status, Strength};
use crate::generation::GenerationClock;
use crate::identity::Identity;
use crate::layers::VolumeKind;
use crate::map::{Content, ContentMap, Extent};
use crate::range::ByteRange;
use crate::store::{Below, Place, Segment, Store, StoreGraph, StoreKind};

pub(super) const NEVER: usize = usize::MAX;

/// Bytes of data; as many of a hole follow.
pub(super) const DATA: u64 = 4096;

type During = Box<dyn FnOnce() + Send>;

/// Counts the questions, and answers "lost" from some of them on.
pub(super) struct World {
    pub(super) file: Arc<File>,
    pub(super) content_asked: AtomicUsize,
    pub(super) content_lost_from: AtomicUsize,
    pub(super) hold_slipped: AtomicBool,
    pub(super) ended: AtomicUsize,
    pub(super) for_ever: AtomicBool,
    /// Number of the disk that the data lies on, at so many blocks.
    pub(super) disk: AtomicU64,
    /// Whether the layers lead nowhere.
    pub(super) is_opaque: AtomicBool,
    /// Whether all of it is told to be data.
    pub(super) all_data: AtomicBool,
    /// Whatever happened to the layers.
    pub(super) events: AtomicUsize,
    pub(super) surveys: AtomicUsize,
    /// Comes while the next survey looks, behind its look at the layers.
    pub(super) during: Mutex<Option<During>>,
}

/// A hold that shares its world with the test.
struct Scripted(Arc<World>);

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
        match self.0.hold_slipped.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err("the test moved it".to_owned()),
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

/// Whether nothing happened since a survey.
struct Watch {
    world: Arc<World>,
    then: usize,
}

impl Witness for Watch {
    fn check(&self) -> Result<(), String> {
        match self.world.events.load(Ordering::SeqCst) == self.then {
            true => Ok(()),
            false => Err("something happened".to_owned()),
        }
    }
}

impl World {
    fn new() -> Arc<Self> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * DATA).unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        Arc::new(Self {
            file: Arc::new(file),
            content_asked: AtomicUsize::new(0),
            content_lost_from: AtomicUsize::new(NEVER),
            hold_slipped: AtomicBool::new(false),
            ended: AtomicUsize::new(0),
            for_ever: AtomicBool::new(false),
            disk: AtomicU64::new(0),
            is_opaque: AtomicBool::new(false),
            all_data: AtomicBool::new(false),
            events: AtomicUsize::new(0),
            surveys: AtomicUsize::new(0),
            during: Mutex::new(None),
        })
    }

    /// Moves the data to another disk, and whatever is done with its old place by then.
    pub(super) fn move_to(&self, disk: u64) {
        self.disk.store(disk, Ordering::SeqCst);
        self.happen();
    }

    /// Something that need not have moved anything.
    pub(super) fn happen(&self) {
        self.events.fetch_add(1, Ordering::SeqCst);
    }

    fn survey(self: &Arc<Self>) -> Survey {
        self.surveys.fetch_add(1, Ordering::SeqCst);
        let then = self.events.load(Ordering::SeqCst);
        let number = self.disk.load(Ordering::SeqCst);
        let is_opaque = self.is_opaque.load(Ordering::SeqCst);
        let during = self.during.lock().unwrap().take();
        if let Some(during) = during {
            during();
        }
        let store = |kind, name: &str, size, below| Store {
            kind,
            identity: Identity::from_operator(name).unwrap(),
            label: name.to_owned(),
            size,
            block_size: None,
            below,
        };
        let mut graph = StoreGraph::new();
        let below = if is_opaque {
            Below::Opaque("the test hides it".to_owned())
        } else {
            Below::Disk
        };
        let disk = graph.add(store(StoreKind::Disk, &format!("lun{number}"), 1 << 20, below));
        let data = ByteRange::new(0, DATA).unwrap();
        let below = Place {
            store: disk,
            offset: number * DATA,
        };
        let segments = Below::Segments(vec![Segment { range: data, below }]);
        let told = if self.all_data.load(Ordering::SeqCst) {
            2 * DATA
        } else {
            DATA
        };
        let extent = Extent {
            range: ByteRange::new(0, told).unwrap(),
            content: Content::Data,
        };
        let world = Arc::clone(self);
        Survey {
            top: graph.add(store(StoreKind::File, "file", 2 * DATA, segments)),
            graph,
            content: ContentMap::from_extents(2 * DATA, [extent]),
            size: 2 * DATA,
            kind: VolumeKind::DeclaredDisk,
            witness: Box::new(Watch { world, then }),
        }
    }
}

/// A block of data and a hole.
pub(super) fn image() -> (PinnedImage, Arc<World>) {
    let world = World::new();
    let description = Description {
        uuid: Uuid::from_u128(1),
        method: "static",
        strength: Strength::CrashConsistent,
        stability: Stability::Pinned,
        attestation: Attestation::Witnessed,
        frozen_at: SystemTime::now(),
    };
    let survey = world.survey();
    let again = Arc::clone(&world);
    let survey_again: SurveyAgain = Box::new(move |_| -> io::Result<Survey> { Ok(again.survey()) });
    let frozen = Frozen {
        description,
        hold: Box::new(Scripted(Arc::clone(&world))),
        survey,
        survey_again,
    };
    let clock = Arc::new(GenerationClock::start().unwrap());
    (PinnedImage::new(frozen, &clock).unwrap(), world)
}

pub(super) fn status(image: &PinnedImage) -> Result<Status, FrozenError> {
    image.status(ByteRange::new(0, 2 * DATA).unwrap(), 10)
}
