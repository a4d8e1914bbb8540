//! The reading half of a backup alone, for benches: reads and validates as `backup` does, and throws the bytes away.
//!
//! ```text
//! bench-fetch NBD-URI [ID=PATH]…
//! ```
//!
//! Prints one JSON object.

#![allow(clippy::print_stdout, reason = "what it prints is its result")]

use std::future::ready;
use std::pin::pin;
use std::time::Instant;

use futures_util::TryStreamExt;
use proxy_client::config::{LunArgument, nbd_uri};
use proxy_client::error::Result;
use proxy_client::nbd::PoolOptions;
use proxy_client::pipeline::{BATCHES, FetchPolicy, Luns, Tally, fetch_batches};
use proxy_client::transport::direct::limits::DIRECT_READ_DEADLINE;
use proxy_client::transport::direct::{DirectOpener, Lun, LunOpener};
use proxy_client::transport::nbd::NbdSource;
use volmap::identity::Identity;

/// LUNs of files and devices that are named on the command line.
fn open(arguments: &[String]) -> Result<Luns> {
    let mut luns = Vec::new();
    for argument in arguments {
        let argument = LunArgument::parse(argument)?;
        let reader = DirectOpener
            .open(&argument.path)
            .unwrap_or_else(|error| panic!("{}: {error}", argument.path.display()));
        let identity = argument.identity.expect("a LUN is given as ID=PATH");
        luns.push(Lun::new(identity, argument.path, reader).within(DIRECT_READ_DEADLINE));
    }
    Ok(Luns::new(luns))
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [uri, luns @ ..] = &arguments[..] else {
        panic!("bench-fetch NBD-URI [ID=PATH]…");
    };
    let luns = open(luns)?;
    let identities: Vec<Identity> = luns.all().map(|lun| lun.identity.clone()).collect();
    let source = NbdSource::open(nbd_uri(uri, None)?, identities, PoolOptions::default()).await?;

    let begun = Instant::now();
    let mut tally = Tally::default();
    let fetched = fetch_batches(
        &source,
        &luns,
        FetchPolicy::default(),
        0,
        None,
        BATCHES,
        |_, fetched| ready(Ok(fetched.tally)),
    );
    let mut fetched = pin!(fetched);
    while let Some(batch) = fetched.try_next().await? {
        tally.add(&batch);
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds,
            "bytes_direct": tally.bytes_direct,
            "bytes_nbd": tally.bytes_nbd,
            "bytes_zero": tally.bytes_zero,
            "bytes_moved": tally.bytes_moved,
            "validations": tally.validations,
        })
    );
    Ok(())
}
