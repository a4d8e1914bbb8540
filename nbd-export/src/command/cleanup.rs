//! `nbd-export cleanup`: what a crash left, found, shown, and removed when the operator says so.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use volmap::leftovers::Finding;

use super::{print_json, unprintable};
use crate::cli::CleanupArgs;
use crate::config::state_dir;
use crate::error::{Error, ErrorKind};
use crate::host::{FoundLeftover, leftovers, remove};

#[derive(Serialize)]
struct LeftoverJson<'a> {
    kind: &'static str,
    path: &'a Path,
    frozen: String,
    /// `there`, `in-use`, `unclear`, or `removed`.
    state: &'static str,
    /// Why it stays, where that is not clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
}

pub(super) fn run(args: &CleanupArgs, out: &mut dyn Write) -> Result<(), Error> {
    let state = state_dir(args.state_dir.as_deref()).path;
    let failed = |error| {
        let what = format!("cannot look for what was left behind ({})", state.display());
        Error::caused(ErrorKind::System, what, error)
    };
    let found: Vec<(FoundLeftover, Option<io::Result<()>>)> = if args.yes {
        let removed = remove(&state, &args.directories).map_err(failed)?;
        removed
            .into_iter()
            .map(|(found, outcome)| (found, Some(outcome)))
            .collect()
    } else {
        let found = leftovers(&state, &args.directories).map_err(failed)?;
        found.into_iter().map(|found| (found, None)).collect()
    };
    let rows: Vec<LeftoverJson<'_>> = found.iter().map(row).collect();
    if args.json {
        print_json(out, &serde_json::json!({ "leftovers": rows }))?;
    } else {
        print(&found, &rows, args.yes, out).map_err(unprintable)?;
    }
    let stay = |(_, outcome): &&(FoundLeftover, Option<io::Result<()>>)| matches!(outcome, Some(Err(_)));
    match found.iter().filter(stay).count() {
        0 => Ok(()),
        count => Err(Error::new(
            ErrorKind::Busy,
            format!("{count} of {} could not be removed", found.len()),
        )),
    }
}

fn row<'a>((found, outcome): &'a (FoundLeftover, Option<io::Result<()>>)) -> LeftoverJson<'a> {
    let (state, remark) = match (outcome, &found.finding) {
        (Some(Ok(())), _) => ("removed", None),
        (_, Finding::InUse) => ("in-use", None),
        (_, Finding::Unclear(why)) => ("unclear", Some(why.clone())),
        (Some(Err(error)), _) => ("there", Some(error.to_string())),
        (None, Finding::There | Finding::Gone) => ("there", None),
    };
    LeftoverJson {
        kind: found.kind(),
        path: &found.leftover.path,
        frozen: found.leftover.frozen.to_string(),
        state,
        remark,
    }
}

/// `there: the clone …`
fn print(
    found: &[(FoundLeftover, Option<io::Result<()>>)],
    rows: &[LeftoverJson<'_>],
    removing: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
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
