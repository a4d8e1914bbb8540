//! Which frozen images are compared, which are kept, and for how long.

use std::sync::Mutex;

use uuid::Uuid;
use volmap::frozen::ChangedMap;
use volmap::range::ByteRange;

use super::*;
use crate::export::ContextIndex;
use crate::export::scripted::MIB;
use crate::host::FrozenReport;

const NONE: [Uuid; 0] = [];

/// A volume whose frozen images say that their first half is the same as ever, if they say anything.
#[derive(Default)]
struct Volume {
    forgets: AtomicBool,
    is_busy: AtomicBool,
    made: Mutex<Vec<Arc<Scripted>>>,
}

impl Source for Volume {
    fn kind(&self) -> VolumeKind {
        VolumeKind::Volume
    }

    fn path(&self) -> String {
        "/scripted".into()
    }

    fn size(&self) -> Result<u64, Error> {
        Ok(4 * MIB)
    }

    fn freeze(&self, _around: &mut Around<'_>) -> Result<Arc<dyn FrozenImage>, Error> {
        let image = match self.forgets.load(Ordering::SeqCst) {
            true => Scripted::drawn(),
            false => Scripted::drawn().telling(ChangedMap::all_but(4 * MIB, ByteRange::new(0, 2 * MIB))),
        };
        image
            .is_busy
            .store(self.is_busy.load(Ordering::SeqCst), Ordering::SeqCst);
        self.made.lock().unwrap().push(Arc::clone(&image));
        Ok(image)
    }
}

fn keeping(images: usize) -> (Arc<Host>, Arc<Volume>) {
    let host = Host::new().keeping(images);
    let volume = Arc::new(Volume::default());
    host.add(&name("vm"), volume.clone()).unwrap();
    (Arc::new(host), volume)
}

fn freeze(host: &Host, id: &str) -> FrozenReport {
    host.freeze("vm", Some(id)).unwrap().remove(0)
}

fn changed_contexts(host: &Host, export: &str) -> Vec<String> {
    let export = host.open(export, &ALL).unwrap().export;
    let names = export.contexts().into_iter().map(|context| context.name);
    names
        .filter(|name| name.starts_with("x-volmap:changed:"))
        .collect()
}

fn named(uuids: &[Uuid]) -> Vec<String> {
    uuids
        .iter()
        .map(|uuid| format!("x-volmap:changed:{uuid}"))
        .collect()
}

fn kept(host: &Host) -> Vec<Uuid> {
    host.list().volumes[0].kept.iter().map(|kept| kept.uuid).collect()
}

#[test]
fn what_changed_is_told_of_those_that_were_there_before_the_freeze() {
    let (host, volume) = keeping(2);
    let (a, b) = (freeze(&host, "a"), freeze(&host, "b"));
    assert_eq!((&a.lineage, &b.lineage), (&vec![], &vec![a.uuid]));
    assert_eq!(changed_contexts(&host, "vm@a"), named(&[]));
    assert_eq!(changed_contexts(&host, "vm@b"), named(&[a.uuid]));
    host.thaw("vm@a").unwrap();
    assert_eq!(kept(&host), [a.uuid]);
    assert_eq!(
        changed_contexts(&host, "vm@b"),
        named(&[a.uuid]),
        "what was found stays true"
    );
    assert_eq!(freeze(&host, "c").lineage, [a.uuid, b.uuid]);
    volume.forgets.store(true, Ordering::SeqCst);
    assert_eq!(freeze(&host, "d").lineage, NONE);
    assert_eq!(changed_contexts(&host, "vm@d"), named(&[]));
}

#[test]
fn a_changed_context_tells_what_is_the_same() {
    let (host, volume) = keeping(1);
    freeze(&host, "a");
    freeze(&host, "b");
    let export = host.open("vm@b", &ALL).unwrap().export;
    let last = ContextIndex(export.contexts().len() - 1);
    let told = |from: u64, one| {
        let range = ByteRange::from_bounds(from, 4 * MIB).unwrap();
        let answer = export.block_status(range, &[last], one).unwrap().remove(0);
        let descriptors = answer.descriptors.into_iter();
        descriptors.map(|d| (d.length, d.status)).collect::<Vec<_>>()
    };
    assert_eq!(told(0, false), [(2 * MIB, 0), (2 * MIB, 1)]);
    assert_eq!(told(MIB + 1, false), [(MIB - 1, 0), (2 * MIB, 1)]);
    assert_eq!(told(MIB + 1, true), [(MIB - 1, 0)]);
    assert_eq!(told(3 * MIB, false), [(MIB, 1)]);
    // The newer one is gone.
    volume.made.lock().unwrap()[1].thaw();
    let all = ByteRange::new(0, 4 * MIB).unwrap();
    assert!(export.block_status(all, &[last], false).is_err());
}

#[test]
fn without_the_option_nothing_is_told_and_nothing_kept() {
    let (host, _) = keeping(0);
    freeze(&host, "a");
    assert_eq!(freeze(&host, "b").lineage, NONE);
    host.thaw("vm@a").unwrap();
    assert_eq!(kept(&host), NONE);
    assert_eq!(changed_contexts(&host, "vm@b"), named(&[]));
}

#[test]
fn a_kept_image_answers_nobody_and_its_name_is_free() {
    let (host, volume) = keeping(1);
    let a = freeze(&host, "a");
    let held = host.open("vm@a", &ALL).unwrap().export;
    host.thaw("vm@a").unwrap();
    let range = ByteRange::new(0, 1).unwrap();
    for index in 0..held.contexts().len() {
        assert!(held.block_status(range, &[ContextIndex(index)], false).is_err());
    }
    assert!(held.cache(range).is_err() && held.flush().is_err() && held.standing().is_err());
    assert!(host.open("vm@a", &ALL).is_none());
    assert!(volume.made.lock().unwrap()[0].stands().is_ok(), "it is kept");
    assert_eq!(kind(host.thaw("vm@a")), ErrorKind::UnknownName);
    assert_eq!(kept(&host), [a.uuid], "a second thaw changes nothing");
    assert_eq!(freeze(&host, "a").lineage, [a.uuid]);
}

#[test]
fn newer_ones_take_the_place_of_older_ones_and_no_more_are_kept() {
    for most in 1..=3 {
        let (host, volume) = keeping(most);
        let mut uuids = Vec::new();
        for _ in 0..5 {
            uuids.push(freeze(&host, "x").uuid);
            assert!(
                kept(&host).len() <= most,
                "the older one stays until the newer one is thawed"
            );
            host.thaw("vm@x").unwrap();
        }
        assert_eq!(kept(&host), uuids[5 - most..]);
        let made = volume.made.lock().unwrap();
        let stands: Vec<bool> = made.iter().map(|image| image.stands().is_ok()).collect();
        assert_eq!(stands, (0..5).map(|nth| nth >= 5 - most).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_dropped_ends_and_costs_no_other_its_place() {
    let (host, volume) = keeping(1);
    let a = freeze(&host, "a");
    host.thaw(&a.uuid.to_string()).unwrap();
    let b = freeze(&host, "b");
    host.thaw_for_good("vm@b").unwrap();
    assert_eq!(kept(&host), [a.uuid]);
    assert_eq!(
        kind(host.thaw_for_good(&b.uuid.to_string())),
        ErrorKind::UnknownName
    );
    host.thaw_for_good(&a.uuid.to_string()).unwrap();
    assert_eq!(kept(&host), NONE);
    assert!(
        volume
            .made
            .lock()
            .unwrap()
            .iter()
            .all(|image| image.stands().is_err())
    );
}

#[test]
fn what_is_kept_is_dropped_by_its_uuid_only() {
    let (host, _) = keeping(1);
    let good = freeze(&host, "daily");
    host.thaw("vm@daily").unwrap();
    freeze(&host, "daily");
    host.thaw_for_good("vm@daily").unwrap();
    // Sent again, because the answer was lost.
    let again = host.thaw_for_good("vm@daily").unwrap_err();
    assert_eq!(again.kind(), ErrorKind::UnknownName);
    assert!(again.to_string().contains(&good.uuid.to_string()), "{again}");
    assert_eq!(kept(&host), [good.uuid]);
}

#[test]
fn the_end_of_the_agent_waits_for_what_is_being_dropped() {
    let (host, volume) = keeping(1);
    let a = freeze(&host, "a");
    host.thaw("vm@a").unwrap();
    let image = Arc::clone(&volume.made.lock().unwrap()[0]);
    let (say, word) = mpsc::channel();
    *image.thaw_waits_for.lock().unwrap() = Some(word);
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| host.thaw_for_good(&a.uuid.to_string()));
        while image.thaw_waits_for.lock().unwrap().is_some() {
            std::thread::yield_now();
        }
        let closing = scope.spawn(|| host.close_within(PATIENCE));
        std::thread::sleep(Duration::from_millis(50));
        let waits = !closing.is_finished();
        say.send(()).unwrap();
        assert!(waits, "its snapshot would stay");
        dropping.join().unwrap().unwrap();
        closing.join().unwrap();
    });
}

#[test]
fn whose_hold_runs_out_takes_no_place_of_a_parent() {
    let (host, volume) = keeping(1);
    let good = freeze(&host, "a");
    host.thaw("vm@a").unwrap();
    host.freeze_for("vm", Some("b"), Some(Duration::ZERO)).unwrap();
    thaw_expired(&host);
    assert!(host.open("vm@b", &ALL).is_none());
    assert!(volume.made.lock().unwrap()[1].stands().is_err());
    assert_eq!(
        kept(&host),
        [good.uuid],
        "nobody said that its backup has committed"
    );
}

#[test]
fn a_hold_is_not_inherited_by_the_next_of_the_name() {
    let (host, _) = keeping(1);
    let first = host.freeze_for("vm", Some("a"), Some(Duration::ZERO)).unwrap();
    host.thaw(&first[0].uuid.to_string()).unwrap();
    host.freeze_for("vm", Some("a"), None).unwrap();
    thaw_expired(&host);
    assert!(host.open("vm@a", &ALL).is_some());
}

#[test]
fn a_listing_changes_nothing() {
    let (host, volume) = keeping(1);
    freeze(&host, "a");
    host.thaw("vm@a").unwrap();
    let keeps = || volume.made.lock().unwrap()[0].keeps.load(Ordering::SeqCst);
    assert_eq!(keeps(), 1);
    for _ in 0..3 {
        assert_eq!(kept(&host).len(), 1);
    }
    assert_eq!(keeps(), 1);
}

#[test]
fn a_comparison_that_waited_for_nothing_is_the_last() {
    let (host, volume) = keeping(4);
    for id in ["a", "b", "c"] {
        freeze(&host, id);
    }
    let comparisons = |nth: usize| {
        volume.made.lock().unwrap()[nth]
            .comparisons
            .load(Ordering::SeqCst)
    };
    assert_eq!(comparisons(2), 2);
    volume.is_busy.store(true, Ordering::SeqCst);
    assert_eq!(freeze(&host, "d").lineage, NONE);
    assert_eq!(comparisons(3), 1, "each of them would wait as long");
}

#[test]
fn what_can_tell_nothing_is_not_kept() {
    let (host, volume) = keeping(1);
    volume.forgets.store(true, Ordering::SeqCst);
    freeze(&host, "a");
    host.thaw("vm@a").unwrap();
    assert_eq!(kept(&host), NONE);
    assert!(volume.made.lock().unwrap()[0].stands().is_err());
}

#[test]
fn one_that_is_lost_while_it_is_kept_is_shown_as_gone() {
    let (host, volume) = keeping(1);
    freeze(&host, "a");
    host.thaw("vm@a").unwrap();
    let state = || host.list().volumes[0].kept[0].state;
    assert_eq!(state(), State::Good);
    volume.made.lock().unwrap()[0].thaw();
    assert_eq!(state(), State::Gone);
}

#[test]
fn kept_images_end_with_the_agent() {
    let (host, volume) = keeping(1);
    freeze(&host, "a");
    host.thaw("vm@a").unwrap();
    freeze(&host, "b");
    host.close_within(PATIENCE);
    assert!(
        volume
            .made
            .lock()
            .unwrap()
            .iter()
            .all(|image| image.stands().is_err())
    );
    assert_eq!(kept(&host), NONE);
}
