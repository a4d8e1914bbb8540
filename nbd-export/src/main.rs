//! The program: reads the command line, does what it says, and turns the outcome into an exit code.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use nbd_export::cli::{Cli, ErrorFormat};
use nbd_export::command;
use nbd_export::error::{Error, ErrorKind};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        // A log that nobody reads any more ends no server.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .init();
    let mut out = io::stdout();
    match command::run(&cli.verb, &mut out).and_then(|()| {
        out.flush()
            .map_err(|why| Error::caused(ErrorKind::System, "cannot write to standard output", why))
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, cli.error_format);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// What clap has to say: help and version are no errors. The format is looked for by hand, because there is no parsed command
/// line to ask.
fn unparsed(error: &clap::Error) -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let json = words.iter().any(|word| word == "--error-format=json")
        || words.windows(2).any(|pair| pair == ["--error-format", "json"]);
    if error.use_stderr() && json {
        let message = error.render().to_string();
        report(
            &Error::new(ErrorKind::Usage, message.trim_end()),
            ErrorFormat::Json,
        );
    } else {
        // Where nobody is there to read it the exit code still tells.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() {
        ErrorKind::Usage.exit_code()
    } else {
        0
    })
}

fn report(error: &Error, format: ErrorFormat) {
    let line = match format {
        ErrorFormat::Text => format!("nbd-export: {error}"),
        ErrorFormat::Json => error.to_json().to_string(),
    };
    // The terminal may have been closed: what happened is told by the exit code, too.
    writeln!(io::stderr(), "{line}").ok();
}
