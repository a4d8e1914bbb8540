//! The command line of `serve`: definitions only.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use nbd_export::server::limits::{CONNECTIONS, CONNECTIONS_MAX, HANDSHAKE_DEADLINE};

/// Arguments of `serve`.
#[derive(clap::Args, Debug)]
pub struct ServeArgs {
    /// An image, or the newest one of a chain, each an export. NAME is taken from the file name if it is not given
    #[arg(value_name = "[NAME=]IMAGE", required = true)]
    pub images: Vec<String>,

    /// An image that one of these continues; those beside it, of the same ending or of the
    /// name that they had then, are found without
    #[arg(long, value_name = "IMAGE")]
    pub parent: Vec<PathBuf>,

    /// Let clients write to an image. What they write is kept in this file, which is made if it is not there, and the image stays as
    /// it is. Without NAME for the only image
    #[arg(long, value_name = "[NAME=]PATH")]
    pub overlay: Vec<String>,

    /// Where to listen, and for whom
    #[command(flatten)]
    pub listening: ListenArgs,
}

/// Where a server listens, for whom, and how much of it clients can hold.
#[derive(clap::Args, Debug)]
pub struct ListenArgs {
    /// Listen on a Unix socket (all exports). With tls=off it goes without TLS where --tls-dir is given: only this user and root
    /// get in
    #[arg(long, value_name = "PATH[,tls=off]")]
    pub socket: Vec<PathBuf>,

    /// Listen on TCP (exports without an overlay)
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,

    /// Allow listening beyond this machine without encryption
    #[arg(long)]
    pub insecure_plaintext: bool,

    /// Encrypt, and let only clients in that have a certificate of the authority in this directory, which holds ca-cert.pem,
    /// server-cert.pem and server-key.pem, and ca-crl.pem where certificates were revoked
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// Let only these clients have an export: a common name or DNS name of their certificate, an address, a network as ADDRESS/BITS,
    /// or unix for the clients of Unix sockets. To others it is unknown
    #[arg(long, value_name = "EXPORT=NAME,...")]
    pub allow: Vec<String>,

    /// Serve one client at standard input and output (one Unix socket, or two pipes), all exports, and end with it
    #[arg(long, conflicts_with_all = ["socket", "listen"])]
    pub single: bool,

    /// Write a newline to descriptor N, and close it, when every export is opened and checked
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<i32>,

    /// Most connections that are served at a time; one address (of IPv6: one /64), or one local process, gets three quarters of
    /// them. Of fewer than four, it gets all
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=CONNECTIONS_MAX as u64))]
    pub max_connections: usize,

    /// Time that a client has to come to an export
    #[arg(long, value_name = "SECONDS", default_value_t = HANDSHAKE_DEADLINE.as_secs(),
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=3600))]
    pub handshake_timeout: u64,
}
