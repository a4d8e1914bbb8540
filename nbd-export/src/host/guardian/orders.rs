//! What an agent and its guardian say to each other.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Hooks, Stage};

/// What the hooks of one freeze are told, beside the stage.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(in crate::host) struct Occasion {
    /// The set, if it is one.
    pub(in crate::host) set: Option<String>,
    /// The volumes.
    pub(in crate::host) volumes: Vec<String>,
    /// The frozen images, once they are made.
    pub(in crate::host) frozen: Vec<String>,
}

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::host) enum Outcome {
    /// There were frozen images, and they are ended.
    Thawed,
    /// There never were.
    Failed,
    /// The agent is gone.
    AgentDied,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Thawed => "thawed",
            Self::Failed => "failed",
            Self::AgentDied => "agent-died",
        }
    }
}

/// What an agent orders.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Order {
    /// First: what there is to run, and for what; and the path of the directory where it is written down which file systems are frozen.
    Begin {
        hooks: Hooks,
        occasion: Occasion,
        /// Its bytes, which need not be UTF-8.
        state_dir: Option<Vec<u8>>,
    },
    /// Run a hook.
    Run { stage: Stage, occasion: Occasion },
    /// Freeze the file systems that these paths lie in.
    FreezeFileSystems { on: Vec<PathBuf>, deadline: Duration },
    /// Thaw them.
    ThawFileSystems,
    /// It is over: run the post-thaw hook, and end.
    End { outcome: Outcome, occasion: Occasion },
}

/// What the guardian answers to each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// It is not, and nothing of it stands.
    Failed(String),
}
