//! The sums of a map.

use std::collections::BTreeMap;

use serde::Serialize;

use super::meaning::Meaning;
use crate::error::{Error, ErrorKind, Result};
use crate::escaped::json_line;

/// Most statuses that are summed up: a context with more has no sums that anybody would read.
const CLASSES: usize = 100_000;

/// Bytes of each class of status.
#[derive(Default)]
pub(super) struct Totals(BTreeMap<u64, u64>);

/// A line of the sums. Field names are part of the command line's contract, and those of nbdinfo.
#[derive(Serialize)]
struct Line<'a> {
    size: u64,
    percent: f64,
    #[serde(rename = "type")]
    status: u64,
    description: &'a str,
}

impl Totals {
    pub(super) fn add(&mut self, class: u64, length: u64) -> Result<()> {
        *self.0.entry(class).or_default() += length;
        if self.0.len() > CLASSES {
            let message = "the context has too many different statuses to sum them up";
            return Err(Error::new(ErrorKind::HostIncompatible, message));
        }
        Ok(())
    }

    /// The lines of an export of `whole` bytes.
    pub(super) fn lines(self, meaning: Meaning, whole: u64, json: bool) -> String {
        #[allow(clippy::cast_precision_loss, reason = "a percentage for people")]
        let percent = |size: u64| size as f64 * 100.0 / whole.max(1) as f64;
        let described: Vec<_> = self
            .0
            .iter()
            .map(|(class, size)| (*class, *size, meaning.describe_class(*class)))
            .collect();
        if json {
            let lines: Vec<_> = described
                .iter()
                .map(|(status, size, description)| Line {
                    size: *size,
                    percent: percent(*size),
                    status: *status,
                    description,
                })
                .collect();
            return json_line(&lines) + "\n";
        }
        let lines = described.iter().map(|(status, size, description)| {
            let line = format!("{size:>15} {:>5.1}% {status:>4}  {description}", percent(*size));
            format!("{}\n", line.trim_end())
        });
        lines.collect()
    }
}
