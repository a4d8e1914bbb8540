//! The verbs: one verb, one file. What they print, they print to a writer that `main` gives them.

mod backup;
mod cleanup;
mod freeze;
mod guard;
mod list;
mod map;
mod probe;
mod serve;
mod signals;
mod thaw;

pub use signals::Signals;

use std::io::Write;

use clap::CommandFactory;
use volmap::layers::Layers;

use crate::cli::{Cli, Verb};
use crate::config::identities;
use crate::error::{Error, ErrorKind};

/// Does what the command line asks for, and prints to `out`.
///
/// # Errors
/// As the verb.
pub fn run(verb: &Verb, out: &mut dyn Write) -> Result<(), Error> {
    match verb {
        Verb::Serve(args) => serve::run(args, out),
        Verb::Backup(args) => backup::run(args, out),
        Verb::WatchBackup(args) => backup::watch(args),
        Verb::Freeze(args) => freeze::run(args, out),
        Verb::Thaw(args) => thaw::run(args, out),
        Verb::List(args) => list::run(args, out),
        Verb::Cleanup(args) => cleanup::run(args, out),
        Verb::Guard => guard::run(),
        Verb::Map(args) => map::run(args, out),
        Verb::Probe(args) => probe::run(args, out),
        Verb::Generate(args) => {
            let generated = args.what.run(Cli::command(), out);
            generated.map_err(|why| Error::caused(ErrorKind::System, "cannot write", why))
        }
    }
}

/// A failure to print what was asked for is a failure of the command.
fn unprintable(error: std::io::Error) -> Error {
    Error::caused(ErrorKind::System, "cannot write to standard output", error)
}

/// One JSON object on one line.
fn print_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<(), Error> {
    serde_json::to_writer(&mut *out, value).map_err(|error| unprintable(error.into()))?;
    writeln!(out).map_err(unprintable)
}

/// An agent that answers something else than what was asked.
fn unexpected() -> Error {
    Error::new(
        ErrorKind::Control,
        "the agent gave another answer than was asked for: is it of this version?",
    )
}

/// The layers of this machine, with what was declared on the command line.
fn layers(declared: &[String]) -> Result<Layers, Error> {
    Layers::new(identities(declared)?).map_err(|why| Error::caused(ErrorKind::Volume, "--identity", why))
}
