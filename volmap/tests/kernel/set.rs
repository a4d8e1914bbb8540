//! Sets: several files, frozen at one instant.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use volmap::cow::Origin;
use volmap::freeze::{FreezeError, FreezeOptions, Method};
use volmap::frozen::Stability;
use volmap::generation::GenerationClock;
use volmap::set::{self, FileSystems, HeldBy, SetImage, SetOrigin};
use volmap::sys::{file_system, inode_flags, lease};

use crate::rig::{Rig, pattern, read_all};

/// Freezes file systems from this process, with something done just before each freeze and just after each thaw.
struct Forced<'t> {
    frozen: Vec<File>,
    rounds: usize,
    before: Box<dyn FnMut(usize) + 't>,
    after: Box<dyn FnMut() + 't>,
    /// What the thaw says.
    thawed: Result<(), String>,
}

impl<'t> Forced<'t> {
    fn new(before: impl FnMut(usize) + 't, after: impl FnMut() + 't) -> Self {
        Self {
            frozen: Vec::new(),
            rounds: 0,
            before: Box::new(before),
            after: Box::new(after),
            thawed: Ok(()),
        }
    }
}

impl FileSystems for Forced<'_> {
    fn freeze(&mut self, on: &[&File]) -> Result<(), String> {
        self.rounds += 1;
        (self.before)(self.rounds);
        for file in on {
            file_system::freeze(file).map_err(|error| error.to_string())?;
            self.frozen.push(file.try_clone().unwrap());
        }
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), String> {
        for file in self.frozen.drain(..) {
            file_system::thaw(&file).unwrap();
        }
        (self.after)();
        self.thawed.clone()
    }
}

impl Drop for Forced<'_> {
    fn drop(&mut self) {
        for file in self.frozen.drain(..) {
            file_system::thaw(&file).ok();
        }
    }
}

fn freeze(
    rig: &Rig,
    volumes: &[PathBuf],
    method: Method,
    hook_holds: bool,
    file_systems: &mut dyn FileSystems,
) -> Result<Vec<SetImage>, FreezeError> {
    let options = FreezeOptions {
        method,
        ..FreezeOptions::default()
    };
    let layers = Arc::new(rig.layers());
    let clock = Arc::new(GenerationClock::start().unwrap());
    set::prepare(volumes, &[], &options, &layers, &clock)?
        .freeze(hook_holds, file_systems)?
        .finish()
}

fn clones(rig: &Rig) -> usize {
    let names = fs::read_dir(&rig.mount)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_str().unwrap().ends_with(".frozen"))
        .count()
}

/// Files of a few MiB, and writers that have them open.
fn files(rig: &Rig, count: usize) -> (Vec<PathBuf>, Vec<File>) {
    let paths: Vec<PathBuf> = (0..count).map(|n| rig.mount.join(format!("{n}.img"))).collect();
    for (n, path) in paths.iter().enumerate() {
        fs::write(path, pattern(2 << 20, n as u64)).unwrap();
    }
    let open = |path: &PathBuf| File::options().read(true).write(true).open(path).unwrap();
    let writers = paths.iter().map(open).collect();
    (paths, writers)
}

#[test]
fn what_is_written_between_clone_and_freeze_is_in_the_frozen_images_and_what_comes_later_is_not() {
    let Some(rig) = Rig::xfs(
        "what_is_written_between_clone_and_freeze_is_in_the_frozen_images_and_what_comes_later_is_not",
    ) else {
        return;
    };
    let (paths, writers) = files(&rig, 7);
    let keep_size = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep_size;
    // Everything that a file can go through, when all clones are taken and no file system is frozen yet.
    let mut at_the_freeze = Vec::new();
    let change = |_| {
        writers[0].write_all_at(&[0xaa; 4096], 64 << 10).unwrap();
        writers[1]
            .write_all_at(b"behind the old end", (3 << 20) + 5)
            .unwrap();
        writers[2].set_len((1 << 20) + 777).unwrap();
        fallocate(&writers[3], punch, 256 << 10, 128 << 10).unwrap();
        // Unwritten blocks, and some of them written.
        fallocate(&writers[4], FallocateFlags::empty(), 2 << 20, 1 << 20).unwrap();
        writers[4].write_all_at(&[0xbb; 100], (2 << 20) + 8192).unwrap();
        // Shorter and longer again: zeroes where there was data.
        writers[5].set_len(1000).unwrap();
        writers[5].set_len(2 << 20).unwrap();
        at_the_freeze = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    };
    let overwrite = || {
        for writer in &writers {
            writer.write_all_at(&vec![0xee; 2 << 20], 0).unwrap();
            writer.sync_all().unwrap();
        }
    };
    let mut forced = Forced::new(change, overwrite);
    let images = freeze(&rig, &paths, Method::Auto, false, &mut forced).unwrap();
    assert_eq!(forced.rounds, 1);
    drop(forced);
    let instant = images[0].image.description().frozen_at;
    for (n, (made, expected)) in images.iter().zip(&at_the_freeze).enumerate() {
        assert_eq!(made.held_by, HeldBy::FileSystem);
        let about = made.image.description();
        assert_eq!((about.method, about.stability), ("reflink", Stability::Pinned));
        assert_eq!(about.frozen_at, instant);
        assert!(read_all(&*made.image) == *expected, "file {n} by NBD");
        let (direct, _) = rig.read_as_proxy(&*made.image);
        assert!(direct == *expected, "file {n} directly");
    }
    drop(images);
    assert_eq!(clones(&rig), 0);
}

#[test]
fn too_much_between_clone_and_freeze_is_cloned_again_and_then_refused() {
    let Some(rig) = Rig::new(
        "too_much_between_clone_and_freeze_is_cloned_again_and_then_refused",
        400,
        &["mkfs.xfs", "-q", "-m", "reflink=1"],
    ) else {
        return;
    };
    let (paths, writers) = files(&rig, 2);
    let much = |seed: u8| {
        for mib in 0..70 {
            writers[0].write_all_at(&vec![seed; 1 << 20], mib << 20).unwrap();
        }
        writers[0].sync_all().unwrap();
    };
    // Once: the second round finds little.
    let mut forced = Forced::new(
        |round| {
            if round == 1 {
                much(1)
            }
        },
        || {},
    );
    let images = freeze(&rig, &paths, Method::Reflink, false, &mut forced).unwrap();
    assert_eq!(forced.rounds, 2);
    drop(forced);
    assert!(read_all(&*images[0].image) == fs::read(&paths[0]).unwrap());
    drop(images);

    let mut forced = Forced::new(|round| much(u8::try_from(round).unwrap()), || {});
    let refused = freeze(&rig, &paths, Method::Reflink, false, &mut forced);
    assert!(matches!(refused, Err(FreezeError::NotStill(_))));
    drop(forced);
    assert_eq!(clones(&rig), 0);
    writers[0].write_all_at(b"x", 0).unwrap();
}

#[test]
fn a_file_system_that_did_not_stay_frozen_costs_the_freeze() {
    let Some(rig) = Rig::xfs("a_file_system_that_did_not_stay_frozen_costs_the_freeze") else {
        return;
    };
    let (paths, _writers) = files(&rig, 2);
    let mut forced = Forced::new(|_| {}, || {});
    forced.thawed = Err("the deadline passed".to_owned());
    // A hook's word does not make up for it.
    for hook_holds in [false, true] {
        let refused = freeze(&rig, &paths, Method::Auto, hook_holds, &mut forced);
        assert!(matches!(refused, Err(FreezeError::NotStill(_))));
        assert_eq!(clones(&rig), 0);
    }
}

/// File systems that nobody may freeze.
struct NotAllowed;

impl FileSystems for NotAllowed {
    fn freeze(&mut self, _on: &[&File]) -> Result<(), String> {
        Err("not root".to_owned())
    }

    fn thaw(&mut self) -> Result<(), String> {
        panic!("nothing was frozen");
    }
}

#[test]
fn without_a_freeze_writers_are_kept_out_by_leases_or_by_a_hook_or_the_set_is_refused() {
    let Some(rig) =
        Rig::xfs("without_a_freeze_writers_are_kept_out_by_leases_or_by_a_hook_or_the_set_is_refused")
    else {
        return;
    };
    let (paths, writers) = files(&rig, 3);
    let held_by = |images: &[SetImage]| -> Vec<HeldBy> { images.iter().map(|made| made.held_by).collect() };
    let refused = freeze(&rig, &paths, Method::Auto, false, &mut NotAllowed);
    assert!(matches!(refused, Err(FreezeError::NotStill(_))));
    assert_eq!(clones(&rig), 0);
    let by_hook = freeze(&rig, &paths, Method::Auto, true, &mut NotAllowed).unwrap();
    assert_eq!(held_by(&by_hook), [HeldBy::Hook; 3]);
    drop((by_hook, writers));

    let by_lease = freeze(&rig, &paths, Method::Auto, false, &mut NotAllowed).unwrap();
    assert_eq!(held_by(&by_lease), [HeldBy::Lease; 3]);
    // The clones stand, and the files are free.
    let writer = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&paths[0])
        .unwrap();
    writer.write_all_at(&[9; 4096], 0).unwrap();
    assert!(read_all(&*by_lease[0].image) == pattern(2 << 20, 0));
    drop(writer);

    let alone = freeze(&rig, &paths[..1], Method::Auto, false, &mut NotAllowed).unwrap();
    assert_eq!(held_by(&alone), [HeldBy::Alone]);
}

#[test]
fn quiesced_files_of_a_set_are_all_held_or_none_is() {
    let Some(rig) = Rig::ext4("quiesced_files_of_a_set_are_all_held_or_none_is") else {
        return;
    };
    let (paths, mut writers) = files(&rig, 3);
    writers.truncate(0);
    let writer = File::options().write(true).open(&paths[2]).unwrap();
    let refused = freeze(&rig, &paths, Method::Auto, false, &mut NotAllowed);
    assert!(matches!(refused, Err(FreezeError::WriterPresent { .. })));
    for path in &paths {
        let file = File::open(path).unwrap();
        assert!(!inode_flags::get(&file).unwrap().is_immutable());
        assert_eq!(lease::held(&file).unwrap(), lease::Held::None);
    }
    drop(writer);
    let images = freeze(&rig, &paths, Method::Auto, false, &mut NotAllowed).unwrap();
    for made in &images {
        assert_eq!(made.held_by, HeldBy::Lease);
        assert_eq!(made.image.description().method, "quiesce");
    }
    let late = File::options().write(true).open(&paths[0]);
    assert_eq!(
        late.map(drop).map_err(|e| e.kind()),
        Err(io::ErrorKind::PermissionDenied)
    );
}

/// An origin beside the files, live and as a member of a set.
fn origin(rig: &Rig) -> (Arc<Origin>, [SetOrigin; 1]) {
    let path = rig.mount.join("origin");
    fs::write(&path, pattern(1 << 20, 7)).unwrap();
    let live = rig.origin(&path, &rig.mount.join("copy"));
    let origin = Arc::clone(&live);
    (live, [SetOrigin { path, origin }])
}

/// Who writes to the origin and then to the file comes as far as the origin when the file system is about to be frozen.
#[test]
fn an_origin_and_files_with_writers_are_of_one_instant() {
    let Some(rig) = Rig::xfs("an_origin_and_files_with_writers_are_of_one_instant") else {
        return;
    };
    let (paths, writers) = files(&rig, 2);
    let (live, origins) = origin(&rig);
    let options = FreezeOptions::default();
    let layers = Arc::new(rig.layers());
    let clock = Arc::new(GenerationClock::start().unwrap());
    let (begin, begun) = mpsc::channel();
    let made = thread::scope(|scope| {
        scope.spawn(move || {
            begun.recv().unwrap();
            live.write_at(0, &[1; 4096], false).unwrap();
            writers[1].write_all_at(&[1; 4096], 0).unwrap();
        });
        let before = |_| {
            begin.send(()).unwrap();
            thread::sleep(Duration::from_millis(200));
        };
        let mut forced = Forced::new(before, || {});
        let held = set::prepare(&paths, &origins, &options, &layers, &clock)
            .and_then(|prepared| prepared.freeze(false, &mut forced))
            .unwrap();
        assert!(held.window() >= Duration::from_millis(200));
        let uuids = held.uuids();
        let made = held.finish().unwrap();
        let of: Vec<_> = made.iter().map(|made| made.image.description().uuid).collect();
        assert_eq!(of, uuids);
        made
    });
    let held_by: Vec<HeldBy> = made.iter().map(|made| made.held_by).collect();
    assert_eq!(held_by, [HeldBy::FileSystem, HeldBy::FileSystem, HeldBy::Agent]);
    let instant = |made: &SetImage| made.image.description().frozen_at;
    assert!(made.iter().all(|one| instant(one) == instant(&made[0])));
    assert!(read_all(&*made[1].image) == pattern(2 << 20, 1));
    assert!(read_all(&*made[2].image) == pattern(1 << 20, 7));
}

#[test]
fn a_set_that_fails_leaves_no_frozen_image_of_its_origins() {
    let Some(rig) = Rig::xfs("a_set_that_fails_leaves_no_frozen_image_of_its_origins") else {
        return;
    };
    let (paths, _writers) = files(&rig, 1);
    let (live, origins) = origin(&rig);
    let options = FreezeOptions::default();
    let layers = Arc::new(rig.layers());
    let clock = Arc::new(GenerationClock::start().unwrap());
    let mut late = Forced::new(|_| {}, || {});
    late.thawed = Err("the deadline passed".to_owned());
    for file_systems in [&mut NotAllowed as &mut dyn FileSystems, &mut late] {
        let prepared = set::prepare(&paths, &origins, &options, &layers, &clock).unwrap();
        let refused = prepared.freeze(false, file_systems).map(drop);
        assert!(matches!(refused, Err(FreezeError::NotStill(_))));
        assert_eq!(clones(&rig), 0);
        // Nothing is kept for an image that is not there.
        live.write_at(0, &[1; 4096], false).unwrap();
        assert_eq!(live.copy_area_use().used, 0);
    }
}
