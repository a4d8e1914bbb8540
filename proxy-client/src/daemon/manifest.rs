//! The small file beside an image, for people and scripts that look through a repository without the daemon.

use nbd_export::proxy::JobReport;
use serde_json::{Value, json};

use crate::job::inspect::Inspected;

/// Its version; a reader refuses one that it does not know.
const VERSION: u32 = 1;

/// What is in it. All but the times is in the image too, which alone is needed for a restore.
pub(super) fn manifest(
    job: &JobReport,
    inspected: &Inspected,
    file: &str,
    bytes: u64,
    verified: bool,
) -> String {
    let header = inspected.to_json();
    let value: Value = json!({
        "manifest": VERSION,
        "image": file,
        "bytes": bytes,
        "image-uuid": header["image"],
        "frozen": header["frozen"],
        "root": header["root"],
        "size": header["size"],
        "host": job.request.host,
        "volume": job.request.volume,
        "export": job.request.export,
        "job": job.id,
        "submitted": job.submitted,
        "started": job.started,
        "verified": verified,
        "report": job.report,
    });
    format!("{value:#}\n")
}
