//! `doctor`: whether this machine keeps its hands off the LUNs that it is to read.

use std::fmt;

use serde::Serialize;

use crate::config::LunArgument;
use crate::doctor::examine;
pub use crate::doctor::{Finding, FindingKind, Severity};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::direct::own_identity;

/// One LUN and what was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LunExamination {
    /// Where it is.
    pub path: String,
    /// What it is called by itself; null where it has no name of its own.
    pub identity: Option<String>,
    /// Whether it must not be read while it is like this.
    pub dangerous: bool,
    /// What there is to say, the worst first.
    pub findings: Vec<Finding>,
}

/// What the doctor says. Field names are part of the command line's contract.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Examination {
    /// LUN by LUN.
    pub luns: Vec<LunExamination>,
}

/// Looks at LUNs, and changes nothing.
///
/// # Errors
/// [`ErrorKind::Io`]: one cannot be looked at; [`ErrorKind::WrongLun`]: one is another disk than the one that was named.
pub fn doctor(luns: &[LunArgument]) -> Result<Examination> {
    let luns = luns.iter().map(examination).collect::<Result<_>>()?;
    Ok(Examination { luns })
}

/// Refuses LUNs that this machine uses: a host and its proxy must not both have their hands on them.
///
/// # Errors
/// As [`doctor`], and [`ErrorKind::LunInUse`].
pub fn refuse_used(luns: &[LunArgument]) -> Result<()> {
    doctor(luns)?.verdict()
}

fn examination(lun: &LunArgument) -> Result<LunExamination> {
    let failed = |error| Error::io("looking at a LUN", &lun.path, error);
    let findings = examine(&lun.path).map_err(failed)?;
    let own = own_identity(&lun.path).map_err(failed)?.ok();
    Ok(LunExamination {
        path: lun.path.display().to_string(),
        identity: lun.identity.clone().or(own).map(|identity| identity.to_string()),
        dangerous: findings
            .iter()
            .any(|finding| finding.severity == Severity::Danger),
        findings,
    })
}

impl Examination {
    /// What the command ends with.
    ///
    /// # Errors
    /// [`ErrorKind::LunInUse`], with the worst of each LUN.
    pub fn verdict(&self) -> Result<()> {
        let dangers = self
            .luns
            .iter()
            .flat_map(|lun| &lun.findings)
            .filter(|finding| finding.severity == Severity::Danger);
        let told: Vec<String> = dangers
            .map(|finding| format!("{}; {}", finding.message, finding.mend))
            .collect();
        if told.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::LunInUse, told.join(". ")))
    }
}

/// For people: a line for each LUN, and below it what was found.
impl fmt::Display for Examination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for lun in &self.luns {
            let name = lun.identity.as_deref().unwrap_or("no identity of its own");
            let verdict = if lun.dangerous {
                "in use here"
            } else {
                "not in use here"
            };
            writeln!(f, "{} ({name}): {verdict}", lun.path)?;
            for finding in &lun.findings {
                writeln!(f, "{finding}")?;
            }
        }
        Ok(())
    }
}
