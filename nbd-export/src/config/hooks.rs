//! The commands that run around a freeze.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::ServeArgs;

/// When a command runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Before anything is held.
    PreFreeze,
    /// Once everything is frozen, and writers go on.
    PostFreeze,
    /// When the frozen images are ended, or there are none because something failed.
    PostThaw,
}

impl Stage {
    /// Its name, as in the option that gives its command.
    pub fn name(self) -> &'static str {
        match self {
            Self::PreFreeze => "pre-freeze",
            Self::PostFreeze => "post-freeze",
            Self::PostThaw => "post-thaw",
        }
    }
}

/// The commands, for `sh -c`, and how long each may take.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Hooks {
    /// `--pre-freeze`.
    pub pre_freeze: Option<String>,
    /// `--post-freeze`.
    pub post_freeze: Option<String>,
    /// `--post-thaw`.
    pub post_thaw: Option<String>,
    /// `--hook-timeout`.
    pub timeout: Duration,
}

impl Hooks {
    /// What each has where nobody says.
    pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

    pub(super) fn new(args: &ServeArgs) -> Self {
        Self {
            pre_freeze: args.pre_freeze.clone(),
            post_freeze: args.post_freeze.clone(),
            post_thaw: args.post_thaw.clone(),
            timeout: Duration::from_secs(args.hook_timeout),
        }
    }

    /// The command of a stage.
    pub fn command(&self, stage: Stage) -> Option<&str> {
        match stage {
            Stage::PreFreeze => self.pre_freeze.as_deref(),
            Stage::PostFreeze => self.post_freeze.as_deref(),
            Stage::PostThaw => self.post_thaw.as_deref(),
        }
    }

    /// Whether there is any command.
    pub fn any(&self) -> bool {
        [Stage::PreFreeze, Stage::PostFreeze, Stage::PostThaw]
            .iter()
            .any(|stage| self.command(*stage).is_some())
    }
}
