//! Where it is written down what a crash would leave behind.

use std::env;
use std::path::{Path, PathBuf};

/// Its name in the directory for such things.
const NAME: &str = "nbd-export";

/// The state directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateDir {
    /// Its path.
    pub path: PathBuf,
    /// Whether the operator asked for this very path, so that going on without it would be wrong.
    pub given: bool,
}

/// The given one; else that of the service manager; else the usual one of the user. It has to outlive a reboot, as what it tells of does.
pub fn state_dir(given: Option<&Path>) -> StateDir {
    let path = match given {
        Some(path) => path.to_owned(),
        None => from_service_manager().unwrap_or_else(usual),
    };
    StateDir {
        path,
        given: given.is_some(),
    }
}

/// systemd.exec(5), `StateDirectory=`: one or several, with colons.
fn from_service_manager() -> Option<PathBuf> {
    let directories = env::var_os("STATE_DIRECTORY")?;
    env::split_paths(&directories)
        .next()
        .filter(|path| path.is_absolute())
}

fn usual() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return Path::new("/var/lib").join(NAME);
    }
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .unwrap_or_else(env::temp_dir)
        .join(NAME)
}
