//! `nbd-export freeze`: prints the NBD URI of the frozen image, or those of a set.

use std::io::Write;

use super::{print_json, unexpected, unprintable};
use crate::cli::FreezeArgs;
use crate::config::control_path;
use crate::error::Error;
use crate::host::control::{Reply, Request, ask};

pub(super) fn run(args: &FreezeArgs, out: &mut dyn Write) -> Result<(), Error> {
    let request = Request::Freeze {
        name: args.name.clone(),
        id: args.id.clone(),
        hold_seconds: None,
    };
    let reports = match ask(&control_path(args.client.control.as_deref()), &request)? {
        Reply::Frozen(report) if args.client.json => return print_json(out, &report),
        Reply::Frozen(report) => vec![report],
        Reply::FrozenSet(reports) if args.client.json => return print_json(out, &reports),
        Reply::FrozenSet(reports) => reports,
        _ => return Err(unexpected()),
    };
    for report in reports {
        let uri = report.uri.unwrap_or(report.export);
        writeln!(out, "{uri}").map_err(unprintable)?;
    }
    Ok(())
}
