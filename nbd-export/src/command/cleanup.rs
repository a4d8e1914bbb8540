//! `nbd-export cleanup`: what a crash left, found, shown, and removed when the operator says so.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use volmap::leftovers::Finding;

use super::{print_json, unprintable};
use crate::cli::CleanupArgs;
use crate::config::state_dir;
use crate::error::{Error, ErrorKind};
use crate::host::{FoundLeftover, leftovers, lvm_leftovers, remove, remove_lvm};

#[derive(Serialize)]
struct LeftoverJson {
    kind: &'static str,
    /// Of a file; of a snapshot its name, and of a pool that of its device.
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    frozen: Option<String>,
    /// `there`, `in-use`, `unclear`, or `removed`.
    state: &'static str,
    /// Why it stays, where that is not clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
}

/// What was found, and what came of removing it, if that was tried.
type Found = (FoundLeftover, Option<io::Result<()>>);

fn only_shown(found: Vec<FoundLeftover>) -> Vec<Found> {
    found.into_iter().map(|found| (found, None)).collect()
}

fn with_outcomes(removed: Vec<(FoundLeftover, io::Result<()>)>) -> Vec<Found> {
    removed
        .into_iter()
        .map(|(found, outcome)| (found, Some(outcome)))
        .collect()
}

pub(super) fn run(args: &CleanupArgs, out: &mut dyn Write) -> Result<(), Error> {
    let state = state_dir(args.state_dir.as_deref()).path;
    let failed = |error| {
        let what = format!("cannot look for what was left behind ({})", state.display());
        Error::caused(ErrorKind::System, what, error)
    };
    let mut found: Vec<Found> = if args.yes {
        with_outcomes(remove(&state, &args.directories).map_err(failed)?)
    } else {
        only_shown(leftovers(&state, &args.directories).map_err(failed)?)
    };
    let of_lvm = if args.yes {
        remove_lvm().map(with_outcomes)
    } else {
        lvm_leftovers().map(only_shown)
    };
    let unseen = match of_lvm {
        Ok(of_lvm) => {
            found.extend(of_lvm);
            None
        }
        // Who is not root has made none.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!("not looked for what was left behind of LVM: this needs root");
            None
        }
        Err(error) => Some(error),
    };
    let rows: Vec<LeftoverJson> = found.iter().map(row).collect();
    if args.json {
        print_json(out, &serde_json::json!({ "leftovers": rows }))?;
    } else {
        print(&found, &rows, args.yes, out).map_err(unprintable)?;
    }
    let stay = |(_, outcome): &&Found| matches!(outcome, Some(Err(_)));
    if let Some(error) = unseen {
        let what = "cannot look for what was left behind of LVM";
        return Err(Error::caused(ErrorKind::System, what, error));
    }
    match found.iter().filter(stay).count() {
        0 => Ok(()),
        count => Err(Error::new(
            ErrorKind::Busy,
            format!("{count} of {} could not be removed", found.len()),
        )),
    }
}

fn row((found, outcome): &Found) -> LeftoverJson {
    let (state, remark) = match (outcome, &found.finding) {
        (Some(Ok(())), _) => ("removed", None),
        (_, Finding::InUse) => ("in-use", None),
        (_, Finding::Unclear(why)) => ("unclear", Some(why.clone())),
        (Some(Err(error)), _) => ("there", Some(error.to_string())),
        (None, Finding::There | Finding::Gone) => ("there", None),
    };
    LeftoverJson {
        kind: found.kind(),
        path: found.path(),
        frozen: found.frozen().map(|frozen| frozen.to_string()),
        state,
        remark,
    }
}

/// `there: the clone …`
fn print(found: &[Found], rows: &[LeftoverJson], removing: bool, out: &mut dyn Write) -> io::Result<()> {
    for ((found, _), row) in found.iter().zip(rows) {
        write!(out, "{}: {found}", row.state)?;
        match &row.remark {
            Some(remark) => writeln!(out, " ({remark})")?,
            None => writeln!(out)?,
        }
    }
    if found.is_empty() {
        writeln!(out, "nothing was left behind")?;
    } else if !removing {
        writeln!(out, "nothing was removed: say --yes")?;
    }
    Ok(())
}
