//! Daemons that are killed at any moment.
//!
//! `DAEMON_KILLS` says how many (20), `DAEMON_SEED` repeats their moments.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_export::proxy::{JobReport, JobState};
use proxy_client::pipeline::Random;
use tests::daemon::{Proxy, request};
use tests::disk::Mounted;
use tests::site::{Site, VOLUME};
use tests::{image, needs_loop_devices, volume};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// All files below a directory, by how their names end.
fn files(directory: &Path, end: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => found.extend(path.to_str().unwrap().strip_suffix(end).map(str::to_owned)),
            }
        }
    }
    found
}

fn assert_done(job: &JobReport) {
    assert_eq!((job.state, job.verified), (JobState::Done, true), "{job:?}");
    assert!(job.failure.is_none(), "{job:?}");
}

/// Every job that was accepted ends well, none is made twice, and nothing half lies about.
#[test]
#[allow(clippy::print_stdout, reason = "the seed is part of the proof")]
fn jobs_end_well_whenever_their_daemon_is_killed() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = Site::new(Mounted::xfs(320 << 20), &volume::noise(1, 24 << 20));
    site.serve(&[]);
    let tables = format!(
        "[lun.disk]\npath = {:?}\nidentity = \"lun0\"\n[host.web]\nuri = \"nbd+unix:///?socket={}\"\nis-this-machine = true\n\
         luns = [\"disk\"]\n",
        site.disk.disk.device,
        site.socket().display()
    );
    let mut proxy = Proxy::start("checkpoint-every = \"1M\"\njobs = 1", &tables);
    let begun = Instant::now();
    let first = proxy.submit(&request("web", VOLUME, "vm")).unwrap();
    let mut jobs = vec![proxy.wait_for_end(first.id)];
    assert_done(&jobs[0]);
    let duration = begun.elapsed();

    let wanted = setting("DAEMON_KILLS").unwrap_or(20);
    let seed = setting("DAEMON_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("DAEMON_SEED={seed} DAEMON_KILLS={wanted}: a job takes {duration:?}");
    let random = Random::of_a_seed(seed);
    let mut current = None;
    let mut caught = 0;
    for _ in 0..wanted {
        let id = match current {
            Some(id) => id,
            None => proxy.submit(&request("web", VOLUME, "vm")).unwrap().id,
        };
        let most = u64::try_from(duration.as_micros()).unwrap();
        std::thread::sleep(Duration::from_micros(random.below(most)));
        proxy.kill();
        caught += u64::from(!files(&proxy.path("images"), ".partial").is_empty());
        proxy.begin();
        let job = proxy.job(id);
        current = match job.state.is_final() {
            true => {
                jobs.push(job);
                None
            }
            false => Some(id),
        };
    }
    jobs.extend(current.map(|id| proxy.wait_for_end(id)));
    for job in &jobs {
        assert_done(job);
        image::assert_holds(&proxy.image(job), &site.volume());
    }
    let images = files(&proxy.path("images"), ".vbi.zst");
    assert_eq!(images.len(), jobs.len());
    assert_eq!(images, files(&proxy.path("images"), ".json"));
    for leftover in [".partial", ".bad"] {
        assert!(files(&proxy.path("images"), leftover).is_empty());
    }
    println!("{} jobs, {caught} kills in the midst of an image", jobs.len());
    assert!(caught > 0, "some kills have to find it writing");
}
