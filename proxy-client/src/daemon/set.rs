//! The manifest of a set that a host handed over volume by volume: it is filed with the last image.

use std::cmp::Reverse;

use nbd_export::proxy::JobReport;

use super::clock::stamp;
use super::queue::Queue;
use super::repository::Repository;
use crate::error::Result;
use crate::job::set::{Candidate, collect};

/// Files the manifest of the set that the image of a job is of, if each of its volumes has one that is filed. The image of the job itself is
/// filed already: of two jobs that end at once, one at least finds both.
///
/// # Errors
/// The disk refuses.
pub(super) fn file_set(repository: &Repository, queue: &Queue, job: &JobReport) -> Result<()> {
    let _one_at_a_time = repository.sets();
    let host = &job.request.host;
    let mut jobs = queue.jobs();
    // What the host froze together has one name behind the volume's.
    jobs.retain(|other| other.request.host == *host && frozen_as(other) == frozen_as(job));
    // Of a volume that was backed up again, the newest.
    jobs.sort_by_key(|other| (other.id != job.id, Reverse(other.id)));
    let within_host = |job: &JobReport| {
        Some(
            job.image
                .as_deref()?
                .strip_prefix(host)?
                .strip_prefix('/')?
                .to_owned(),
        )
    };
    let candidates = jobs.iter().filter_map(|job| {
        Some(Candidate {
            file: within_host(job)?,
            path: repository.filed(job.image.as_deref()?)?,
        })
    });
    let Some(manifest) = collect(candidates)? else {
        return Ok(());
    };
    let is_of = |job: &&JobReport| {
        within_host(job).is_some_and(|file| manifest.images.iter().any(|image| image.file == file))
    };
    let Some(first) = jobs.iter().filter(is_of).min_by_key(|job| job.id) else {
        return Ok(());
    };
    let name = format!("set@{}-{}", stamp(first.submitted), first.id);
    let text = format!("{:#}\n", serde_json::json!(manifest));
    let path = repository.file_set_manifest(host, &name, &text)?;
    tracing::info!(set = manifest.set, manifest = %path.display(), "every volume of the set has its image");
    Ok(())
}

fn frozen_as(job: &JobReport) -> Option<&str> {
    job.request.export.split_once('@').map(|(_, frozen)| frozen)
}
