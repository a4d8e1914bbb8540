//! `proxy-client`: the command.

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use indicatif::HumanBytes;
use nbd_export::proto::ContextName;
use nbd_export::proxy::{JobLimits, ProxyError};
use nbd_export::uri::NbdUri;
use proxy_client::cli::{
    BackupArgs, Cli, CopyArgs, ErrorFormat, InfoArgs, JobsArgs, LogFormat, RestoreArgs, ResumeArgs,
    StatusArgs, Verb, VerifyArgs,
};
use proxy_client::config::{ImagePath, LunArgument, Place, nbd_uri, nbd_uri_with_set, places};
use proxy_client::error::{Error, ErrorKind, Result};
use proxy_client::escaped::{escaped_lines, json_line};
use proxy_client::job::backup::{BackupOptions, backup_unless};
use proxy_client::job::copy::{CopyOptions, copy};
use proxy_client::job::demo::demo;
use proxy_client::job::doctor::{doctor, refuse_used};
use proxy_client::job::info::{MapOptions, details, list, print_map};
use proxy_client::job::inspect::inspect;
use proxy_client::job::jobs::{Line, Lines, daemon_at, failed};
use proxy_client::job::lineage::ParentOptions;
use proxy_client::job::restore::{RestoreOptions, restore_unless};
use proxy_client::job::resume::{ResumeOptions, Resumed, resume_unless};
use proxy_client::job::serve::serve;
use proxy_client::job::set::{back_up_set, is_manifest, members, restore_set, verify_set};
use proxy_client::job::status::Look;
use proxy_client::job::unless_stopped;
use proxy_client::job::verify::{compare, verify};
use proxy_client::limits_file::LimitsFile;
use proxy_client::nbd::PoolOptions;
use proxy_client::pipeline::CheckpointEvery;
use proxy_client::progress::Progress;
use proxy_client::report::BackupReport;
use proxy_client::runtime::{in_runtime, stop, to_its_end, watched, within};
use proxy_client::transport::direct::DirectOpener;
use tracing_subscriber::EnvFilter;
use volmap::sys::heap;

fn main() -> ExitCode {
    // Batches are read, encoded and written by different threads.
    heap::share();
    let (format, result) = match Cli::try_parse() {
        Ok(cli) => {
            log_as(&cli);
            (cli.error_format, run(cli.verb))
        }
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

/// Logs go to stderr. A daemon tells of its jobs, and a server of its clients; a command only of what is odd.
fn log_as(cli: &Cli) {
    let usual = if matches!(cli.verb, Verb::Daemon(_) | Verb::Serve(_)) {
        "info"
    } else {
        "warn"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that nobody reads any more ends no job.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
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
    to_stderr(&match format {
        ErrorFormat::Text => format!("proxy-client: {error}\n{}", row.advice),
        ErrorFormat::Json => json_line(&serde_json::json!({
            "kind": row.name, "message": error.to_string(), "advice": row.advice, "exit_code": row.exit_code,
        })),
    });
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Backup(args) => run_backup(&args),
        Verb::Resume(args) => run_resume(args),
        Verb::Restore(args) => run_restore(args),
        Verb::Copy(args) => run_copy(&args),
        Verb::Info(args) => run_info(&args),
        Verb::Verify(args) => run_verify(&args),
        Verb::Demo(args) => in_runtime(demo(args.keep.as_deref())),
        Verb::Generate(args) => {
            let generated = args.what.run(Cli::command(), &mut std::io::stdout());
            generated.map_err(|why| Error::new(ErrorKind::Io, "cannot write").caused_by(why))
        }
        Verb::Daemon(args) => proxy_client::daemon::run(&args.config),
        Verb::Jobs(args) => in_runtime(run_jobs(args)),
        Verb::Status(args) => in_runtime(run_status(args)),
        Verb::Doctor(args) => {
            let luns = luns(&args.lun)?;
            let examination = doctor(&luns)?;
            to_stdout(&if args.json {
                json_line(&examination)
            } else {
                examination.to_string().trim_end().to_owned()
            })?;
            examination.verdict()
        }
        Verb::Serve(args) => serve(&args, &mut std::io::stdout()),
        Verb::Inspect(args) => {
            let inspected = inspect(&args.image)?;
            to_stdout(&if args.json {
                json_line(&inspected.to_json())
            } else {
                inspected.to_string()
            })
        }
    }
}

fn luns(arguments: &[String]) -> Result<Vec<LunArgument>> {
    arguments.iter().map(|text| LunArgument::parse(text)).collect()
}

fn run_backup(args: &BackupArgs) -> Result<()> {
    let uris = args.uris.iter();
    let uris = uris.map(|uri| nbd_uri_with_set(uri, args.server.tls_dir.as_deref()));
    let (uris, sets): (Vec<_>, Vec<_>) = uris.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let mut sets = args.set.clone().into_iter().chain(sets.into_iter().flatten());
    let (set, another) = (sets.next(), sets.next());
    if another.is_some() {
        return Err(Error::new(ErrorKind::Usage, "one set at a time: name it once"));
    }
    let [uri, others @ ..] = &uris[..] else {
        return Err(Error::new(ErrorKind::Usage, "there is nothing to back up"));
    };
    let options = BackupOptions {
        luns: luns(&args.lun)?,
        require_direct: args.require_direct,
        no_fallback: args.no_fallback,
        audit_percent: args.audit,
        parent: args.parent.clone().map(|image| ParentOptions {
            image,
            policy: args.parent_policy,
            bitmap: args.bitmap.clone(),
        }),
        checkpoints: (!args.discard_partial).then(|| CheckpointEvery {
            bytes: args.checkpoint_every,
            ..CheckpointEvery::default()
        }),
        nbd: args.server.pool_options(),
        direct_timeout: args.direct_timeout,
        throttle: args.limits.throttle()?,
        spool: args.spool.clone(),
        ..BackupOptions::new(uri.clone(), ImagePath::new(&args.output))
    };
    if !args.host_is_this_machine {
        refuse_used(&options.luns)?;
    }
    if set.is_some() || !others.is_empty() {
        return run_set(args, &uris, set.as_deref(), &options);
    }
    let progress = Progress::on_terminal();
    let report = to_its_end(async |signals| {
        let stop = stop(signals, args.server.timeout);
        let backup = backup_unless(&options, &DirectOpener, stop, &progress);
        LimitsFile::followed(args.limits.file().as_ref(), &options.throttle, backup).await
    })?;
    if args.json && options.output == ImagePath::Stdio {
        to_stderr(&json_line(&report));
        return report.verdict();
    }
    tell(&report, args.json)
}

/// Backs up several exports that belong together.
fn run_set(args: &BackupArgs, uris: &[NbdUri], set: Option<&str>, options: &BackupOptions) -> Result<()> {
    let usage = |message: &'static str| Err(Error::new(ErrorKind::Usage, message));
    if options.output == ImagePath::Stdio {
        return usage("a set becomes several files: --output is the manifest");
    }
    if options.parent.is_some() {
        return usage("--parent: the images of a set are continued one by one");
    }
    let progress = Progress::on_terminal();
    let report = to_its_end(async |signals| {
        let mut stop = pin!(stop(signals, args.server.timeout));
        let asked = members(uris, set, &args.output, options.nbd.deadlines);
        let target = unless_stopped(stop.as_mut(), asked).await?;
        let local = args.host_is_this_machine;
        let backup = back_up_set(
            &target,
            &args.output,
            options,
            local,
            &DirectOpener,
            stop,
            &progress,
        );
        LimitsFile::followed(args.limits.file().as_ref(), &options.throttle, backup).await
    })?;
    if args.json {
        to_stdout(&json_line(&report))?;
    } else {
        for image in &report.manifest.images {
            to_stderr(&format!(
                "{}: {} in {}, root {}",
                image.volume,
                HumanBytes(image.size),
                image.file,
                image.root
            ));
        }
    }
    report.into_verdict()
}

fn run_resume(args: ResumeArgs) -> Result<()> {
    let limits = args.limits.file();
    let options = ResumeOptions {
        uri: args
            .uri
            .map(|uri| nbd_uri(&uri, args.tls_dir.as_deref()))
            .transpose()?,
        tls_directory: args.tls_dir,
        luns: luns(&args.lun)?,
        only_these_luns: false,
        host_is_this_machine: args.host_is_this_machine,
        parent: args.parent,
        require_direct: args.require_direct,
        audit_percent: args.audit,
        checkpoints: CheckpointEvery {
            bytes: args.checkpoint_every,
            ..CheckpointEvery::default()
        },
        throttle: args.limits.throttle()?,
        spool: args.spool,
        ..ResumeOptions::new(args.image)
    };
    let progress = Progress::on_terminal();
    let resumed = to_its_end(async |signals| {
        let resumed = resume_unless(&options, &DirectOpener, stop(signals, None), &progress);
        LimitsFile::followed(limits.as_ref(), &options.throttle, resumed).await
    })?;
    match resumed {
        Resumed::Finished(report) => tell(&report, args.json),
        Resumed::WasWhole(whole) => {
            let end = &whole.end;
            to_stderr(&format!(
                "the image was whole and has its name now, root {}",
                end.root
            ));
            if args.json {
                to_stdout(&json_line(
                    &serde_json::json!({ "size": end.size, "root": end.root }),
                ))?;
            }
            whole.verdict()
        }
    }
}

/// The report of a backup, and what its policy makes of it.
fn tell(report: &BackupReport, json: bool) -> Result<()> {
    if json {
        to_stdout(&json_line(&report))?;
    } else {
        to_stderr(report.to_string().trim_end());
    }
    report.verdict()
}

async fn run_jobs(args: JobsArgs) -> Result<()> {
    let daemon = daemon_at(&args.at.daemon, args.at.tls_dir.as_deref())?;
    let Some(id) = args.id else {
        let jobs = daemon.jobs().await.map_err(failed)?;
        return to_stdout(&if args.json {
            json_line(&jobs)
        } else {
            Lines(&jobs).to_string().trim_end().to_owned()
        });
    };
    if args.limits(JobLimits::default()).is_some() {
        let now = daemon.job(id).await.map_err(failed)?.limits;
        if let Some(limits) = args.limits(now) {
            daemon.limit(id, &limits).await.map_err(failed)?;
        }
    }
    loop {
        let job = match args.cancel {
            true => daemon.cancel(id).await,
            false => daemon.job(id).await,
        }
        .map_err(failed)?;
        to_stdout(&if args.json {
            json_line(&job)
        } else {
            Line(&job).to_string()
        })?;
        if !args.watch || job.state.is_final() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Once, or until somebody interrupts it. A daemon that goes away while it is watched may come back.
async fn run_status(args: StatusArgs) -> Result<()> {
    let daemon = daemon_at(&args.at.daemon, args.at.tls_dir.as_deref())?;
    let repaint = args.watch && !args.json && std::io::stdout().is_terminal();
    let mut before = None;
    let mut is_away = false;
    let mut shown = String::new();
    loop {
        match Look::at(&daemon, before.as_ref()).await {
            Ok(look) => {
                let text = match args.json {
                    true => json_line(&look),
                    false => look.to_string().trim_end().to_owned(),
                };
                if repaint {
                    // Home, and nothing below: no lines are left of the look before.
                    write!(std::io::stdout(), "\x1b[H\x1b[2J").map_err(unwritable)?;
                }
                if repaint || text != shown {
                    to_stdout(&text)?;
                }
                shown = text;
                is_away = false;
                before = Some(look);
            }
            Err(ProxyError::Lost(why)) if before.is_some() => {
                if !std::mem::replace(&mut is_away, true) {
                    to_stderr(&format!("the daemon does not answer, and is asked again: {why}"));
                }
            }
            Err(error) => return Err(failed(error)),
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn run_restore(args: RestoreArgs) -> Result<()> {
    let [output] = places([&args.output], args.server.tls_dir.as_deref())?;
    let options = RestoreOptions {
        image: args.image,
        parents: args.parent,
        output,
        force: args.force,
        nbd: args.server.pool_options(),
    };
    let progress = Progress::on_terminal();
    let mut tell = |done, size| progress.update_bytes(done, size);
    if is_manifest(&options.image) {
        let Place::Path(directory) = &options.output else {
            let message = "a set is restored to a directory";
            return Err(Error::new(ErrorKind::Usage, message));
        };
        let restored = to_its_end(async |signals| {
            let stop = stop(signals, args.server.timeout);
            restore_set(&options.image, directory, &options, stop, &mut tell).await
        });
        progress.end();
        let restored = restored?;
        to_stderr(&format!(
            "restored {} volumes to {}",
            restored.len(),
            directory.display()
        ));
        let first_gap = restored.iter().find_map(|volume| volume.unreadable.error());
        return first_gap.map_or(Ok(()), Err);
    }
    let restored = to_its_end(async |signals| {
        restore_unless(&options, stop(signals, args.server.timeout), &mut tell).await
    });
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

fn run_verify(args: &VerifyArgs) -> Result<()> {
    let against = args.against.as_deref();
    let against = against
        .map(|uri| nbd_uri(uri, args.tls_dir.as_deref()))
        .transpose()?;
    let (image, parents) = (&args.image, &args.parent);
    if is_manifest(image) {
        if against.is_some() {
            let message = "--against: the images of a set are compared one by one";
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let (set, verified) = watched(|interrupt, progress| verify_set(image, interrupt, progress))?;
        to_stderr(&format!("the set is good: {} images", verified.len()));
        if args.json {
            to_stdout(&json_line(&set))?;
        }
        let first_gap = verified.iter().find_map(|image| image.unreadable.error());
        return first_gap.map_or(Ok(()), Err);
    }
    if against.is_some() && ImagePath::new(image) == ImagePath::Stdio {
        let message = "--against reads an image where it has to, so it is to be a file";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let verified = watched(|interrupt, progress| verify(image, parents, interrupt, progress))?;
    to_stderr(&format!(
        "the image is good: {}, root {}",
        HumanBytes(verified.header.size),
        verified.end.root
    ));
    let comparison = match &against {
        Some(uri) => {
            let progress = Progress::on_terminal();
            let mut tell = |done, size| progress.update_bytes(done, size);
            let compared = in_runtime(compare(image, parents, uri, PoolOptions::default(), &mut tell));
            progress.end();
            let comparison = compared?;
            if !comparison.same_frozen_image {
                to_stderr(
                    "the server publishes no frozen image: bytes alone are compared, and it may have been written to",
                );
            }
            Some(comparison)
        }
        None => None,
    };
    if args.json {
        to_stdout(&json_line(&verified.to_json(comparison.as_ref())))?;
    }
    if let Some(comparison) = comparison {
        comparison.verdict()?;
        to_stderr(&format!(
            "the source has the same {}",
            HumanBytes(comparison.bytes_compared)
        ));
    }
    verified.unreadable.error().map_or(Ok(()), Err)
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
    let report =
        to_its_end(async |signals| copy(&options, stop(signals, args.server.timeout), &mut tell).await);
    progress.end();
    let report = report?;
    if !args.json {
        to_stderr(&report.to_string());
        Ok(())
    } else if options.target == Place::Stdio {
        to_stderr(&json_line(&report));
        Ok(())
    } else {
        to_stdout(&json_line(&report))
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

#[allow(clippy::print_stdout, reason = "results are what stdout is for")]
/// Text, or JSON on a line. Nothing that others say in it steers a terminal.
fn to_stdout(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", escaped_lines(text)).map_err(unwritable)
}

fn unwritable(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "standard output cannot be written").caused_by(error)
}

/// The terminal may have been closed: what became of the job is told by the exit code, too.
fn to_stderr(text: &str) {
    writeln!(std::io::stderr(), "{}", escaped_lines(text)).ok();
}
