//! Jobs from their request to the repository.

use std::fs;

use nbd_export::proxy::JobState;
use serde_json::Value;
use tests::cow::log::{Change, Kind};
use tests::cow::served::Served;
use tests::daemon::{Proxy, request};
use tests::{image, needs, program};
use volmap::limits::COPY_UNIT;

use super::Server;

/// Every name in a directory of the repository.
fn names(directory: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_job_ends_as_a_verified_image_with_a_manifest() {
    needs!("nbdkit", "zstd");
    let server = Server::new(4 << 20, &[], &[]);
    let proxy = Proxy::start("", &server.table("web", ""));
    let asked = request("web", "anything", "vm");
    let job = proxy.submit(&asked).unwrap();
    let done = proxy.wait_for_end(job.id);
    assert_eq!(
        (done.state, done.verified, done.attempts),
        (JobState::Done, true, 1),
        "{done:?}"
    );
    assert_eq!(done.failure, None);
    let path = proxy.image(&done);
    image::assert_holds(&path, &server.volume());
    let directory = path.parent().unwrap();
    assert!(directory.ends_with("images/web/vm"), "{directory:?}");
    let [manifest, image] = <[String; 2]>::try_from(names(directory)).unwrap();
    assert_eq!(image.strip_suffix(".vbi.zst"), manifest.strip_suffix(".json"));
    let manifest: Value = serde_json::from_slice(&fs::read(directory.join(manifest)).unwrap()).unwrap();
    assert_eq!(manifest["image"], *image);
    assert_eq!(manifest["bytes"], fs::metadata(&path).unwrap().len());
    assert_eq!(manifest["verified"], true);
    let report = done.report.as_ref().unwrap();
    assert_eq!(
        (&manifest["root"], &manifest["report"]),
        (&report["root"], report)
    );

    // The same request is the same job.
    assert_eq!(proxy.submit(&asked).unwrap(), done);
    // What operators see of it.
    let url = proxy.url();
    let line = program::proxy_client(&["jobs", "--daemon", &url]);
    assert!(line.contains("done") && line.contains("web/vm"), "{line}");
    let text = program::proxy_client(&["jobs", "1", "--watch", "--json", "--daemon", &url]);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["state"], "done");
    let status = program::proxy_client(&["status", "--daemon", &url]);
    assert!(status.contains("0 of at most 2 under way, 0 wait"), "{status}");
    let metrics = proxy.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    for line in [
        "proxy_client_volume_bytes_total{transport=\"nbd\"} 4194304",
        "proxy_client_jobs_ended_total{state=\"done\"} 1",
        "proxy_client_last_size_bytes{host=\"web\",volume=\"vm\"} 4194304",
        "proxy_client_last_direct_ratio{host=\"web\",volume=\"vm\"} 0.0",
        "proxy_client_jobs{state=\"queued\"} 0",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is missing: {metrics}");
    }
    assert!(
        metrics.contains("proxy_client_last_success_timestamp_seconds{"),
        "{metrics}"
    );
    // Every line of the log is an object.
    for line in proxy.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
    }
    program::fails("proxy-client", 1, &["jobs", "99", "--daemon", &url]);
}

#[test]
fn as_many_run_as_may_and_none_is_forgotten() {
    needs!("nbdkit");
    let server = Server::slow(30);
    let proxy = Proxy::start("jobs = 2", &server.table("web", ""));
    let ids: Vec<u64> = (0..4)
        .map(|number| {
            let asked = request("web", "x", &format!("vm{number}"));
            proxy.submit(&asked).unwrap().id
        })
        .collect();
    let mut most = 0;
    loop {
        let jobs = proxy.ask(async |daemon| daemon.jobs().await).unwrap().jobs;
        let count = |state| jobs.iter().filter(|job| job.state == state).count();
        let under_way = count(JobState::Running) + count(JobState::Verifying);
        assert!(under_way <= 2, "{jobs:?}");
        most = most.max(under_way);
        if count(JobState::Done) == ids.len() {
            break;
        }
        assert_eq!(count(JobState::Failed), 0, "{jobs:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(most, 2);
}

/// A rate that would take days is told while the job waits, kept to, and outlives the daemon; without it the job ends at once.
#[test]
fn limits_are_changed_while_a_job_runs() {
    needs!("nbdkit");
    let server = Server::slow(200);
    let mut proxy = Proxy::start("jobs = 1", &server.table("web", ""));
    let first = proxy.submit(&request("web", "x", "vm")).unwrap().id;
    let job = proxy.submit(&request("web", "x", "vm")).unwrap().id;
    let url = proxy.url();
    let id = job.to_string();
    let limit = |words: &[&str]| {
        let arguments = [&["jobs", &id, "--json", "--daemon", &url][..], words].concat();
        let text = program::proxy_client(&arguments);
        serde_json::from_str::<Value>(&text).unwrap()["limits"].clone()
    };
    assert_eq!(
        limit(&["--limit-rate", "10", "--limit-reads", "2"]),
        serde_json::json!({"rate": 10, "reads": 2})
    );
    proxy.ask(async |daemon| daemon.cancel(first).await).unwrap();
    proxy.wait_until(job, |job| job.state == JobState::Running);
    proxy.kill();
    proxy.begin();
    let running = proxy.wait_until(job, |job| {
        job.state == JobState::Running && job.progress.is_some()
    });
    assert_eq!(running.limits.rate.map(u64::from), Some(10));
    // One read may go ahead of its price.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let running = proxy.job(job);
    assert_eq!(running.state, JobState::Running);
    assert_eq!(running.progress.unwrap().done, 0);
    assert_eq!(limit(&["--limit-rate", "0"]), serde_json::json!({"reads": 2}));
    assert_eq!(proxy.wait_for_end(job).state, JobState::Done);
    program::fails(
        "proxy-client",
        2,
        &["jobs", "--limit-rate", "5", "--daemon", &url],
    );
}

#[test]
fn a_cancelled_job_leaves_nothing() {
    needs!("nbdkit");
    let server = Server::slow(200);
    let proxy = Proxy::start("jobs = 1", &server.table("web", ""));
    let running = proxy.submit(&request("web", "x", "vm")).unwrap();
    let waiting = proxy.submit(&request("web", "x", "vm")).unwrap();
    let partial = {
        let mut path = proxy.image(&running).into_os_string();
        path.push(".partial");
        std::path::PathBuf::from(path)
    };
    proxy.wait_until(running.id, |job| {
        job.progress.is_some_and(|progress| progress.size > 0)
    });
    assert!(partial.exists());
    for id in [waiting.id, running.id] {
        proxy.ask(async |daemon| daemon.cancel(id).await).unwrap();
        assert_eq!(proxy.wait_for_end(id).state, JobState::Cancelled);
    }
    let directory = partial.parent().unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(100);
    while !names(directory).is_empty() {
        assert!(std::time::Instant::now() < until, "{:?}", names(directory));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_full_queue_is_told() {
    needs!("nbdkit");
    let server = Server::slow(100);
    let proxy = Proxy::start("queue = 1", &server.table("web", ""));
    let first = proxy.submit(&request("web", "x", "vm")).unwrap();
    let refused = proxy.submit(&request("web", "x", "vm")).unwrap_err();
    assert!(
        refused.is_passing() && refused.to_string().contains("wait"),
        "{refused:?}"
    );
    proxy.ask(async |daemon| daemon.cancel(first.id).await).unwrap();
    proxy.wait_for_end(first.id);
    proxy.submit(&request("web", "x", "vm")).unwrap();
}

/// It runs at a pace that leaves time to look; one ahead of it keeps it waiting until that is said.
#[test]
fn the_copy_area_of_the_host_is_told_while_a_job_runs() {
    needs!("nbdkit");
    let served = Served::with_room(24 << 20, 48 << 20);
    served.ask(&["freeze", "vol", "--as", "1"]);
    served.client().change(Change {
        offset: 0,
        len: 512,
        kind: Kind::Write(*b"is kept!"),
    });
    let slow = Server::slow(200);
    let tables = format!(
        "{}[host.origin]\nuri = \"nbd+unix:///?socket={}\"\n",
        slow.table("web", ""),
        served.path("nbd.sock")
    );
    let proxy = Proxy::start("jobs = 1", &tables);
    let first = proxy.submit(&request("web", "x", "vm")).unwrap().id;
    let job = proxy.submit(&request("origin", "vol@1", "vol")).unwrap().id;
    let (url, id) = (proxy.url(), job.to_string());
    let limit = |rate: &str| program::proxy_client(&["jobs", &id, "--limit-rate", rate, "--daemon", &url]);
    limit("10");
    proxy.ask(async |daemon| daemon.cancel(first).await).unwrap();
    let running = proxy.wait_until(job, |job| {
        job.progress.is_some_and(|progress| progress.copy_area.is_some())
    });
    let fill = running.progress.unwrap().copy_area.unwrap();
    assert_eq!((fill.used, fill.size), (COPY_UNIT, 48 << 20));
    let metrics = || proxy.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let told = metrics();
    for line in [
        "proxy_client_copy_area_used_bytes{host=\"origin\",volume=\"vol\"} 65536\n",
        "proxy_client_copy_area_size_bytes{host=\"origin\",volume=\"vol\"} 50331648\n",
    ] {
        assert!(told.contains(line), "{line} is missing: {told}");
    }
    let line = program::proxy_client(&["jobs", &id, "--daemon", &url]);
    assert!(line.contains("copy area 64.00 KiB of 48.00 MiB"), "{line}");
    limit("0");
    assert_eq!(proxy.wait_for_end(job).state, JobState::Done);
    let told = metrics();
    assert!(!told.contains("copy_area_used_bytes{"), "{told}");
}
