//! From what was written on the command line to what is meant: everything that can be wrong with it is a usage error
//! here, and nothing later looks at raw arguments.

mod arguments;
mod endpoint;
mod hooks;
mod inherited;
mod serve;
mod set;
mod size;
mod state_dir;

pub use arguments::{NameError, VolumeName, identities, split_name};
pub use endpoint::{control_path, runtime_path};
pub use hooks::{Hooks, Stage};
pub use inherited::{Inherited, PassedAddress, PassedSocket, Stdio};
pub use serve::{ControlPath, Listener, OriginConfig, ServeConfig, TagConfig, VolumeConfig};
pub use set::SetConfig;
pub use size::{SizeError, parse_size};
pub use state_dir::{StateDir, state_dir};
