//! `proxy-client`: the command.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::HumanBytes;
use nbd_export::proto::ContextName;
use proxy_client::cli::{Cli, CopyArgs, ErrorFormat, InfoArgs, RestoreArgs, Verb};
use proxy_client::config::{ImagePath, LunArgument, Place, nbd_uri, places};
use proxy_client::error::{Error, ErrorKind, Result};
use proxy_client::interrupt::Interrupt;
use proxy_client::job::backup::{BackupOptions, backup};
use proxy_client::job::copy::{CopyOptions, copy};
use proxy_client::job::demo::demo;
use proxy_client::job::info::{MapOptions, details, json_line, list, print_map};
use proxy_client::job::inspect::inspect;
use proxy_client::job::restore::{RestoreOptions, restore_unless};
use proxy_client::job::verify::verify;
use proxy_client::nbd::PoolOptions;
use proxy_client::progress::Progress;
use proxy_client::transport::direct::DirectOpener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long an interrupted job may take to clean up.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let (format, result) = match Cli::try_parse() {
        Ok(cli) => (cli.error_format, run(cli.verb)),
        Err(help) if !help.use_stderr() => help.exit(),
        Err(error) if !json_errors_are_wanted() => error.exit(),
        Err(error) => (
            ErrorFormat::Json,
            Err(Error::new(ErrorKind::Usage, error.render().to_string())),
        ),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error, format);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Whether a command line that could not be parsed asked for JSON errors.
fn json_errors_are_wanted() -> bool {
    let arguments: Vec<_> = std::env::args().collect();
    arguments.iter().any(|a| a == "--error-format=json")
        || arguments
            .windows(2)
            .any(|pair| pair[0] == "--error-format" && pair[1] == "json")
}

fn print_error(error: &Error, format: ErrorFormat) {
    let row = error.kind().row();
    match format {
        ErrorFormat::Text => eprintln!("proxy-client: {error}\n{}", row.advice),
        ErrorFormat::Json => eprintln!(
            "{}",
            serde_json::json!({
                "kind": row.name, "message": error.to_string(), "advice": row.advice, "exit_code": row.exit_code,
            })
        ),
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Backup(args) => {
            let options = BackupOptions {
                uri: nbd_uri(&args.uri, args.tls_dir.as_deref())?,
                output: ImagePath::new(&args.output),
                luns: args
                    .lun
                    .iter()
                    .map(|text| LunArgument::parse(text))
                    .collect::<Result<_>>()?,
                require_direct: args.require_direct,
                audit_percent: args.audit,
            };
            let report = in_runtime(backup(&options, &DirectOpener, &Progress::on_terminal()))?;
            if args.json {
                let line = serde_json::json!(report).to_string();
                if options.output == ImagePath::Stdio {
                    to_stderr(&line)
                } else {
                    to_stdout(&line)?
                }
            } else {
                to_stderr(report.to_string().trim_end());
            }
            report.policy_verdict()
        }
        Verb::Restore(args) => run_restore(args),
        Verb::Copy(args) => run_copy(&args),
        Verb::Info(args) => run_info(&args),
        Verb::Verify(args) => {
            let verified = watched(|interrupt, progress| verify(&args.image, interrupt, progress))?;
            to_stderr(&format!(
                "the image is good: {}, root {}",
                HumanBytes(verified.header.size),
                verified.end.root
            ));
            verified.unreadable.error().map_or(Ok(()), Err)
        }
        Verb::Demo(args) => in_runtime(demo(args.keep.as_deref())),
        Verb::Inspect(args) => {
            let inspected = inspect(&args.image)?;
            to_stdout(&if args.json {
                inspected.to_json().to_string()
            } else {
                inspected.to_string()
            })
        }
    }
}

fn run_restore(args: RestoreArgs) -> Result<()> {
    let [output] = places([&args.output], args.server.tls_dir.as_deref())?;
    let options = RestoreOptions {
        image: args.image,
        output,
        force: args.force,
        nbd: args.server.pool_options(),
    };
    let progress = Progress::on_terminal();
    let mut tell = |done, size| progress.update_bytes(done, size);
    let restored = to_its_end(restore_unless(&options, stop(args.server.timeout), &mut tell));
    progress.end();
    let restored = restored?;
    to_stderr(&format!(
        "restored {} to {}, root {}",
        HumanBytes(restored.header.size),
        options.output,
        restored.end.root
    ));
    restored.unreadable.error().map_or(Ok(()), Err)
}

fn run_copy(args: &CopyArgs) -> Result<()> {
    let tls_directory = args.server.tls_dir.as_deref();
    let [source, target] = places([&args.source, &args.target], tls_directory)?;
    let options = CopyOptions {
        source,
        target,
        force: args.force,
        size: args.size,
        target_is_zero: args.target_is_zero,
        sparse: usize::try_from(args.sparse).unwrap_or(usize::MAX),
        nbd: args.server.pool_options(),
        requests: args.requests.into(),
        request_size: args.request_size,
    };
    let progress = Progress::on_terminal();
    let mut tell = |done, size: Option<u64>| progress.update_bytes(done, size.unwrap_or(done));
    let report = to_its_end(copy(&options, stop(args.server.timeout), &mut tell));
    progress.end();
    let report = report?;
    if !args.json {
        to_stderr(&report.to_string());
        Ok(())
    } else if options.target == Place::Stdio {
        to_stderr(&serde_json::json!(report).to_string());
        Ok(())
    } else {
        to_stdout(&serde_json::json!(report).to_string())
    }
}

fn run_info(args: &InfoArgs) -> Result<()> {
    let usage =
        |what: &str, why: &dyn std::fmt::Display| Error::new(ErrorKind::Usage, format!("{what}: {why}"));
    let uri = nbd_uri(&args.uri, args.tls_dir.as_deref())?;
    if let Some(context) = &args.map {
        let options = MapOptions {
            context: ContextName::new(context).map_err(|e| usage(context, &e))?,
            totals: args.totals,
            json: args.json,
            nbd: PoolOptions::default(),
        };
        return in_runtime(within(args.timeout, print_map(&uri, &options, std::io::stdout())));
    }
    if args.list {
        let listed = in_runtime(within(args.timeout, list(&uri)))?;
        return to_stdout(&if args.json {
            json_line(&listed)
        } else {
            listed.to_string().trim_end().to_owned()
        });
    }
    let found = in_runtime(within(args.timeout, details(&uri)))?;
    to_stdout(&match (args.size, args.json) {
        (true, _) => found.size.to_string(),
        (_, true) => json_line(&found),
        _ => found.to_string().trim_end().to_owned(),
    })
}

/// Keeps a job to its deadline, if it has one.
async fn within<T>(deadline: Option<Duration>, job: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(deadline) = deadline else {
        return job.await;
    };
    tokio::time::timeout(deadline, job).await.map_err(|_| late())?
}

fn late() -> Error {
    Error::new(ErrorKind::DeadlinePassed, "the job took longer than --timeout")
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

/// Why a job must not go on, once there is a reason.
async fn stop(deadline: Option<Duration>) -> Error {
    let passed = async {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = passed => late(),
        () = interruption() => interrupted(),
    }
}

/// Runs a job that tells how far it is, with a progress bar, until it ends or the operator interrupts it.
fn watched<T>(job: impl FnOnce(&Interrupt, &mut dyn FnMut(u64, u64)) -> Result<T>) -> Result<T> {
    let runtime = runtime()?;
    let interrupt = Interrupt::default();
    let raised = interrupt.clone();
    runtime.spawn(async move {
        interruption().await;
        raised.raise();
    });
    let progress = Progress::on_terminal();
    let result = job(&interrupt, &mut |done, size| progress.update_bytes(done, size));
    progress.end();
    result
}

/// Runs a job until it ends or the operator interrupts it.
fn in_runtime<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    to_its_end(async {
        tokio::select! {
            result = job => result,
            () = interruption() => Err(interrupted()),
        }
    })
}

/// Runs a job that sees to interruptions itself.
fn to_its_end<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let result = runtime.block_on(job);
    // The writer's thread removes what it has not finished; it may be stuck in a pipe that nobody reads.
    runtime.shutdown_timeout(STOP_DEADLINE);
    result
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Io, "the runtime cannot start").caused_by(error))
}

/// SIGINT or SIGTERM: both leave through the door, so that nothing half-done stays behind.
async fn interruption() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
        }
        Err(_) => {
            tokio::signal::ctrl_c().await.ok();
        }
    }
}

#[allow(clippy::print_stdout, reason = "results are what stdout is for")]
fn to_stdout(line: &str) -> Result<()> {
    let failed = |error| Error::new(ErrorKind::Io, "standard output cannot be written").caused_by(error);
    writeln!(std::io::stdout().lock(), "{line}").map_err(failed)
}

fn to_stderr(line: &str) {
    eprintln!("{line}");
}
