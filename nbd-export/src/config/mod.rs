//! From what was written on the command line, or in a file, to what is meant: everything that can be wrong with it is a usage error
//! here, and nothing later looks at raw arguments.

mod allow;
mod arguments;
mod endpoint;
mod file;
mod flags;
mod hooks;
mod inherited;
mod listener;
mod serve;
mod set;
mod size;
mod state_dir;

/// Name of the agent's NBD socket in the runtime directory when no listener is given.
const SOCKET_NAME: &str = "nbd-export.sock";

pub use allow::{AllowError, allowed};
pub use arguments::{NameError, VolumeName, identities, socket, split_name};
pub use endpoint::{control_path, runtime_path};
pub use hooks::{Hooks, Stage};
pub use inherited::{Inherited, PassedAddress, PassedSocket, Stdio};
pub use listener::{ControlPath, Endpoints, Listener};
pub use serve::{Freezing, NamedPath, OnRequest, OriginConfig, ServeConfig, VolumeConfig};
pub use set::{SetConfig, SetMember};
pub use size::{SizeError, SnapshotSizeError, parse_size, parse_snapshot_size};
pub use state_dir::{StateDir, state_dir};
