//! Origins under copy-before-write: what was written through the export.

use tests::disk::{self, Scratch, run};
use tests::needs;

use super::{Agent, MIB, VOLUME, filled};

const UNIT: u64 = 64 << 10;

/// An origin that clients write to.
pub(super) struct Origin {
    arguments: Vec<String>,
    _directory: Scratch,
}

impl Origin {
    pub(super) fn new() -> Self {
        let directory = disk::scratch();
        let path = |name: &str| directory.path().join(name);
        filled(&path("vm.img"), 8 * MIB);
        let arguments = vec![
            "--origin".to_owned(),
            format!("{VOLUME}={}", path("vm.img").display()),
            "--copy-area".to_owned(),
            format!("{},size=16M", path("old").display()),
            "--keep-for-incremental=2".to_owned(),
        ];
        Self {
            arguments,
            _directory: directory,
        }
    }

    pub(super) fn serve(&self) -> Agent {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        Agent::serve(&arguments)
    }
}

pub(super) fn write(agent: &Agent, commands: &[&str]) {
    let uri = agent.uri(VOLUME);
    for command in commands {
        run("qemu-io", &["-f", "raw", "-d", "unmap", "-c", command, &uri]);
    }
}

#[test]
fn what_was_written_to_an_origin_is_told_and_nothing_else() {
    needs!("qemu-io");
    let origin = Origin::new();
    let agent = &origin.serve();
    let one = agent.freeze("1");
    write(
        agent,
        &["write -P 7 65536 512", "discard 1M 128k", "write -z 3M 64k"],
    );
    // Old content that comes back is told to have changed.
    write(agent, &["write -P 9 5M 4k", "write -z 6M 64k"]);
    let two = agent.freeze("2");
    assert_eq!(
        (&two.lineage, &agent.listed(&two)),
        (&vec![one.uuid.clone()], &vec![one.uuid.clone()])
    );
    assert_eq!(agent.assert_told_right(&two, &one), 8 * MIB - 6 * UNIT);

    // Thawed, nothing of it is read any more, and what changed since is still known.
    agent.thaw(&one, &[]);
    assert_eq!(agent.kept(), [&*one.uuid]);
    assert_eq!(agent.assert_told_right(&two, &one), 8 * MIB - 6 * UNIT);
    write(agent, &["write -P 8 7M 64k"]);
    let three = agent.freeze("3");
    assert_eq!(three.lineage, [one.uuid.clone(), two.uuid.clone()]);
    assert_eq!(agent.assert_told_right(&three, &two), 8 * MIB - UNIT);
    assert_eq!(agent.assert_told_right(&three, &one), 8 * MIB - 7 * UNIT);

    // The backup of the second one failed; that of the third has committed.
    agent.thaw(&two, &["--drop"]);
    agent.thaw(&three, &[]);
    assert_eq!(agent.kept(), [one.uuid.clone(), three.uuid.clone()]);
    agent.ask(&["thaw", "--drop", &one.uuid]);
    let four = agent.freeze("4");
    assert_eq!(four.lineage, [&*three.uuid]);
    assert_eq!(agent.assert_told_right(&four, &three), 8 * MIB);
}

#[test]
fn nothing_is_known_after_a_restart() {
    let origin = Origin::new();
    for orderly in [true, false] {
        let agent = origin.serve();
        let one = agent.freeze("1");
        agent.thaw(&one, &[]);
        match orderly {
            true => assert!(agent.host.terminate().success()),
            false => agent.host.kill(),
        }
        let agent = origin.serve();
        let two = agent.freeze("2");
        assert!(two.lineage.is_empty() && agent.listed(&two).is_empty());
    }
}
