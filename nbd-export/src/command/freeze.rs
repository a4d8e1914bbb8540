//! `nbd-export freeze`: prints the NBD URI of the frozen image.

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
    };
    let Reply::Frozen(report) = ask(&control_path(args.client.control.as_deref()), &request)? else {
        return Err(unexpected());
    };
    if args.client.json {
        return print_json(out, &report);
    }
    let uri = report.uri.unwrap_or(report.export);
    writeln!(out, "{uri}").map_err(unprintable)
}
