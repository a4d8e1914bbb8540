//! `demo`: the whole story on one machine, without root and without set-up.
//!
//! Host and proxy are the real ones; only the network between them is a Unix socket, and the shared disks are files.

mod host;
mod stage;
mod writer;

use std::io::{self, Write};
use std::path::Path;

use indicatif::HumanBytes;

use self::host::DemoHost;
use self::stage::{Place, digest, make_disks};
use self::writer::Writer;
use super::backup::{BackupOptions, backup};
use super::restore::{RestoreOptions, restore};
use super::verify::verify;
use crate::config::{ImagePath, LunArgument};
use crate::error::{Error, ErrorKind, Result};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::report::BackupReport;
use crate::transport::direct::DirectOpener;

/// Size of the demo's volume: enough for the writers to meet the proxy, and done in seconds.
const SIZE: u64 = 256 << 20;
/// The last part of the volume was never written.
const HOLE: u64 = 64 << 20;

/// Plays the story, and proves its end.
///
/// # Errors
/// The restore differs from the frozen image ([`ErrorKind::ImageBad`]), or a part of the story failed.
pub async fn demo(keep: Option<&Path>) -> Result<()> {
    let place = Place::new(keep)?;
    let say = |line: String| {
        writeln!(io::stdout().lock(), "{line}").map_err(|e| Error::io("telling", Path::new("stdout"), e))
    };
    let path = |name: &str| place.path().join(name);

    let frozen = make_disks(&path("lun.img"), &path("copy.img"))?;
    say(format!(
        "1. A shared disk, {}: a volume of {}.",
        path("lun.img").display(),
        HumanBytes(SIZE)
    ))?;

    let host = DemoHost::start(&place).await?;
    say(format!(
        "2. The host serves the volume under copy-before-write: {}",
        host.uri("vol")
    ))?;
    let export = host.freeze().await?;
    say(format!(
        "3. It is frozen, and the frozen image is published with its map: {}",
        host.uri(&export)
    ))?;
    let writer = Writer::start(host.uri("vol")).await?;
    say("4. A writer overwrites the live volume, over NBD, all the time.".into())?;

    let image = path("volume.vbi.zst");
    let options = BackupOptions {
        luns: vec![
            LunArgument::parse(&format!("demo-lun={}", path("lun.img").display()))?,
            LunArgument::parse(&format!("demo-copy={}", path("copy.img").display()))?,
        ],
        audit_percent: 1.0,
        ..BackupOptions::new(host.uri(&export), ImagePath::File(image.clone()))
    };
    let report = backup(&options, &DirectOpener, &Progress::on_terminal()).await?;
    let written = writer.stop().await?;
    say(format!(
        "5. The proxy backed the frozen image up, while {} were overwritten:",
        HumanBytes(written)
    ))?;
    say(told(&report))?;
    host.stop().await?;

    let restored = path("restored.img");
    verify(&image, &[], &Interrupt::default(), &mut |_, _| {})?;
    restore(&RestoreOptions::to_path(&image, &restored), &mut |_, _| {}).await?;
    say(format!(
        "6. The image was verified and restored: {}",
        restored.display()
    ))?;
    prove(&frozen, &restored, &path("lun.img"), &say)?;
    if let Some(directory) = keep {
        say(format!(
            "Everything is kept in {}; try: zstd -dc {} | cmp - {}",
            directory.display(),
            image.display(),
            restored.display()
        ))?;
    }
    Ok(())
}

/// The numbers of the backup.
fn told(report: &BackupReport) -> String {
    let row = |what: &str, bytes: u64, why: &str| {
        format!("     {what:<11}{:>12}  {why}", HumanBytes(bytes).to_string())
    };
    let mut rows = vec![
        row(
            "direct",
            report.bytes_direct,
            "read from the shared disks, confirmed by the host afterwards",
        ),
        row(
            "moved",
            report.bytes_moved,
            "overwritten under the proxy's hands, and read again",
        ),
        row(
            "  of it",
            report.bytes_remapped_direct,
            "directly from its new place, the copy area",
        ),
        row("nbd", report.bytes_nbd, "through the host"),
        row("zero", report.bytes_zero, "known from the map, not read"),
        row("audited", report.bytes_audited, "read both ways and compared"),
    ];
    rows.extend(report.transport_reasons.iter().map(|reason| {
        format!(
            "     not direct: {} because {}",
            HumanBytes(reason.bytes),
            reason.reason
        )
    }));
    rows.join("\n")
}

/// The end of the story: the restore is the frozen image, and the live volume is not.
fn prove(
    frozen: &blake3::Hash,
    restored: &Path,
    live: &Path,
    say: &impl Fn(String) -> Result<()>,
) -> Result<()> {
    let (now, then) = (digest(live)?, digest(restored)?);
    say(format!("     live volume now    {now}"))?;
    say(format!("     frozen image       {frozen}"))?;
    say(format!("     restored           {then}"))?;
    if then != *frozen {
        let message = "the restore differs from the frozen image: this is a defect, please report it";
        return Err(Error::new(ErrorKind::ImageBad, message).at_path(restored));
    }
    say("7. The restore equals the volume at the instant of the freeze, byte for byte.".into())
}
