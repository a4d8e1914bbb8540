//! `nbd-export probe`: which providers fit a volume, how strong they are, and why the others do not.

use std::io::{self, Write};

use serde::Serialize;
use volmap::freeze::FreezeOptions;
use volmap::probe::{self, Fit, ProviderFit};

use super::{layers, print_json, unprintable};
use crate::cli::ProbeArgs;
use crate::error::{Error, ErrorKind};
use crate::export::words;

#[derive(Serialize)]
struct ProviderJson<'a> {
    provider: &'static str,
    fits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stability: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation: Option<&'static str>,
    /// Why it does not fit, or what to know where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<&'a str>,
}

pub(super) fn run(args: &ProbeArgs, out: &mut dyn Write) -> Result<(), Error> {
    let options = FreezeOptions {
        clone_dir: args.clone_dir.clone(),
        snapshot_size: args.snapshot_size,
        assume_exclusive: args.assume_exclusive,
        ..FreezeOptions::default()
    };
    let fits = probe::probe(&args.volume, &options, &layers(&args.identity)?)
        .map_err(|why| Error::caused(ErrorKind::Volume, "cannot probe", why))?;
    let providers: Vec<ProviderJson<'_>> = fits.iter().map(provider).collect();
    if args.json {
        let volume = args.volume.display().to_string();
        return print_json(
            out,
            &serde_json::json!({ "volume": volume, "providers": providers }),
        );
    }
    providers
        .iter()
        .try_for_each(|provider| print(provider, out))
        .map_err(unprintable)
}

fn provider(fit: &ProviderFit) -> ProviderJson<'_> {
    match &fit.fit {
        Fit::Fits {
            strength,
            stability,
            attestation,
            remark,
        } => ProviderJson {
            provider: fit.provider,
            fits: true,
            strength: Some(words::strength(*strength)),
            stability: Some(words::stability(*stability)),
            attestation: Some(words::attestation(*attestation)),
            remark: remark.as_deref(),
        },
        Fit::Unfit(why) => ProviderJson {
            provider: fit.provider,
            fits: false,
            strength: None,
            stability: None,
            attestation: None,
            remark: Some(why),
        },
    }
}

/// `PROVIDER: STRENGTH, STABILITY, ATTESTATION (remark)` or `PROVIDER: no (why)`
fn print(provider: &ProviderJson<'_>, out: &mut dyn Write) -> io::Result<()> {
    let words: Vec<&str> = [provider.strength, provider.stability, provider.attestation]
        .into_iter()
        .flatten()
        .collect();
    let verdict = if provider.fits {
        words.join(", ")
    } else {
        "no".to_owned()
    };
    write!(out, "{}: {verdict}", provider.provider)?;
    match provider.remark {
        Some(remark) => writeln!(out, " ({remark})"),
        None => writeln!(out),
    }
}
