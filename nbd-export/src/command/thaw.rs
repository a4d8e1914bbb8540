//! `nbd-export thaw`: prints the name of the export that is gone.

use std::io::Write;

use super::{print_json, unexpected, unprintable};
use crate::cli::ThawArgs;
use crate::config::control_path;
use crate::error::Error;
use crate::host::control::{Reply, Request, ask};

pub(super) fn run(args: &ThawArgs, out: &mut dyn Write) -> Result<(), Error> {
    let request = Request::Thaw {
        export: args.export.clone(),
        drop: args.drop,
    };
    let Reply::Thawed { export } = ask(&control_path(args.client.control.as_deref()), &request)? else {
        return Err(unexpected());
    };
    if args.client.json {
        return print_json(out, &serde_json::json!({ "thawed": export }));
    }
    writeln!(out, "thawed {export}").map_err(unprintable)
}
