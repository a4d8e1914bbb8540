//! Manual pages and shell completions, made from the definitions of the command line, so that they cannot say anything else.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

/// Both programs are for administrators (man-pages(7)).
const SECTION: &str = "8";

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to write.
    #[command(subcommand)]
    pub what: Generate,
}

/// What can be generated.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Write manual pages into a directory: one of the program, and one of each verb
    Man {
        /// The directory; it must exist. Pages that are there already are written over
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

impl Generate {
    /// Writes it, of the program that `command` defines.
    ///
    /// # Errors
    /// A page, or `out`, cannot be written; the error names the page.
    pub fn run(&self, command: Command, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Man { directory } => write_pages(command, directory),
            Self::Completions { shell } => print_completions(command, *shell, out),
        }
    }
}

fn write_pages(mut command: Command, directory: &Path) -> io::Result<()> {
    command.build();
    let program = command.get_name().to_owned();
    write_page(command.clone(), &program, directory)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        if verb.get_name() != "help" {
            let name = format!("{program}-{}", verb.get_name());
            write_page(verb.clone(), &name, directory)?;
        }
    }
    Ok(())
}

fn write_page(command: Command, name: &str, directory: &Path) -> io::Result<()> {
    let path = directory.join(format!("{name}.{SECTION}"));
    let mut page = Vec::new();
    Man::new(command).section(SECTION).render(&mut page)?;
    fs::write(&path, page).map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", path.display())))
}

fn print_completions(mut command: Command, shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let name = command.get_name().to_owned();
    // The generator panics where it cannot write, as into a pipe that nobody reads.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_verb_and_every_option_has_its_place_in_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let what = Generate::Man {
            directory: directory.path().to_owned(),
        };
        what.run(Cli::command(), &mut io::sink()).unwrap();
        let page = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let program = page("nbd-export.8");
        let mut command = Cli::command();
        command.build();
        let mut pages = 1;
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            assert_eq!(
                program.contains(&format!("nbd\\-export\\-{}(8)", verb.get_name())),
                !verb.is_hide_set(),
                "{}",
                verb.get_name()
            );
            if verb.is_hide_set() {
                continue;
            }
            pages += 1;
            let page = page(&format!("nbd-export-{}.8", verb.get_name()));
            assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH OPTIONS"));
            for option in verb.get_opts().filter_map(|option| option.get_long()) {
                let escaped = option.replace('-', "\\-");
                assert!(page.contains(&format!("\\-\\-{escaped}")), "{option}");
            }
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), pages);
    }

    #[test]
    fn a_page_that_cannot_be_written_is_named() {
        let what = Generate::Man {
            directory: "/proc/none".into(),
        };
        let error = what.run(Cli::command(), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("/proc/none/nbd-export.8"), "{error}");
    }
}
