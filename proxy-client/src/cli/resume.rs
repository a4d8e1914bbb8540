//! The command line of `resume`: definitions only.

use std::path::PathBuf;

use super::{LimitArgs, checkpoint_bytes, percent};
use crate::config::SpoolArgument;

/// Arguments of `resume`.
#[derive(clap::Args, Debug)]
pub struct ResumeArgs {
    /// The image, by the name that it was to get, or the FILE.partial that is there
    #[arg(value_name = "FILE")]
    pub image: PathBuf,

    /// Where the export is now, if not where it was. It must be of the same frozen image
    #[arg(long, value_name = "NBD-URI")]
    pub uri: Option<String>,

    /// Where a disk of the backup is now, if not where it was
    #[arg(long, value_name = "ID=PATH")]
    pub lun: Vec<String>,

    /// The host of the volume runs on this machine too, so that what uses the LUN here is the host
    #[arg(long)]
    pub host_is_this_machine: bool,

    /// Where the image is now that this one continues, if neither where it was nor beside this one
    #[arg(long, value_name = "IMAGE")]
    pub parent: Option<PathBuf>,

    /// Exit with 4 unless at least this share of the data was read directly; without it as the backup was told
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub require_direct: Option<f64>,

    /// Where certificates are, for nbds; images do not say it, unless the URI of the backup did: this goes before it. That of --uri
    /// goes before this
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// Read this share of the directly read data through the host as well, and compare; without it as the backup was told
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub audit: Option<f64>,

    /// Make the image durable, and note how far it is, after this many bytes of it, and every 30 seconds
    #[arg(long, value_name = "SIZE", value_parser = checkpoint_bytes, default_value = "1G")]
    pub checkpoint_every: u64,

    /// Let what was read wait in a file of this directory until the output takes it, SIZE bytes at most (half of what is free there): the
    /// frozen image is needed no longer than reading takes
    #[arg(long, value_name = "DIR[,size=SIZE]", value_parser = SpoolArgument::parse)]
    pub spool: Option<SpoolArgument>,

    /// What the rest of the backup may take; images do not say it
    #[command(flatten)]
    pub limits: LimitArgs,

    /// End with one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}
