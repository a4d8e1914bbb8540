//! Clones on XFS: what lies at one place in both is the same.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tests::disk::Mounted;
use tests::needs_loop_devices;

use super::{Agent, MIB, VOLUME, filled};

/// An agent that keeps one clone of a file on XFS.
fn serve(disk: &Mounted) -> (Agent, PathBuf) {
    let volume = disk.path.join("vm.img");
    filled(&volume, 8 * MIB);
    let agent = Agent::serve(&[
        &format!("{VOLUME}={}", volume.display()),
        "--keep-for-incremental",
    ]);
    (agent, volume)
}

fn clones(disk: &Mounted) -> usize {
    let entries = fs::read_dir(&disk.path).unwrap().flatten();
    let is_clone = |path: &Path| path.extension().is_some_and(|extension| extension == "frozen");
    entries.filter(|entry| is_clone(&entry.path())).count()
}

#[test]
fn what_differs_between_two_clones_is_told_and_the_older_one_stays_as_long_as_it_is_kept() {
    needs_loop_devices!();
    let disk = Mounted::xfs(320 << 20);
    let (agent, volume) = serve(&disk);
    let live = File::options().write(true).open(&volume).unwrap();
    let one = agent.freeze("1");
    assert!(one.lineage.is_empty());
    agent.thaw(&one, &[]);
    assert_eq!((agent.kept(), clones(&disk)), (vec![one.uuid.clone()], 1));

    live.write_all_at(&[7; 4096], 5 * MIB).unwrap();
    live.write_all_at(&[8; 10], 4095).unwrap();
    // What was there comes back, in another place.
    live.write_all_at(&one.bytes[..65_536], 0).unwrap();
    let two = agent.freeze("2");
    assert_eq!(agent.listed(&two), [&*one.uuid]);
    let same = agent.assert_told_right(&two, &one);
    assert_eq!(same, 8 * MIB - 4096 - 65_536);

    // Its backup failed; the one of the next has committed.
    agent.thaw(&two, &["--drop"]);
    assert_eq!((agent.kept(), clones(&disk)), (vec![one.uuid.clone()], 1));
    live.set_len(9 * MIB).unwrap();
    let three = agent.freeze("3");
    let same = agent.assert_told_right(&three, &one);
    assert_eq!(same, 8 * MIB - 4096 - 65_536, "not what is behind its end");
    agent.thaw(&three, &[]);
    assert_eq!((agent.kept(), clones(&disk)), (vec![three.uuid.clone()], 1));
    live.set_len(7 * MIB).unwrap();
    let four = agent.freeze("4");
    assert_eq!(agent.assert_told_right(&four, &three), 7 * MIB);
    assert!(agent.host.terminate().success());
    assert_eq!(clones(&disk), 0, "what is kept goes with the agent");
}

/// What cannot tell anything later is not left lying about.
#[test]
fn a_file_that_is_held_itself_is_given_back_at_its_thaw() {
    needs_loop_devices!();
    let disk = Mounted::ext4(128 << 20);
    let (agent, volume) = serve(&disk);
    let one = agent.freeze("1");
    assert!(File::options().write(true).open(&volume).is_err());
    agent.thaw(&one, &[]);
    assert!(agent.kept().is_empty());
    assert!(File::options().write(true).open(&volume).is_ok());
}
