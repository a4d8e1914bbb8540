//! Jobs outlive their daemon, in whatever way it ends.

use nbd_export::proxy::{JobReport, JobRequest, JobState};
use nix::sys::signal::{Signal, kill};
use tests::daemon::{Proxy, request};
use tests::disk::Mounted;
use tests::site::{Site, VOLUME, text};
use tests::{image, needs, needs_loop_devices, program};

use super::Server;

#[test]
fn a_killed_daemon_does_its_jobs_after_all() {
    needs!("nbdkit", "zstd");
    let server = Server::slow(60);
    let mut proxy = Proxy::start("jobs = 1", &server.table("web", ""));
    let asked = request("web", "x", "vm");
    let first = proxy.submit(&asked).unwrap();
    let second = proxy.submit(&request("web", "x", "other")).unwrap();
    for _ in 0..3 {
        proxy.wait_until(first.id, |job| {
            job.progress.is_some_and(|progress| progress.done > 0) || job.state.is_final()
        });
        proxy.kill();
        proxy.begin();
    }
    assert_eq!(
        proxy.submit(&asked).unwrap().id,
        first.id,
        "known after a restart too"
    );
    for (id, volume) in [(first.id, "vm"), (second.id, "other")] {
        let done = proxy.wait_for_end(id);
        assert_eq!((done.state, done.verified), (JobState::Done, true), "{done:?}");
        assert_eq!(done.request.volume, volume);
        image::assert_holds(&proxy.image(&done), &server.volume());
        let directory = proxy.image(&done).parent().unwrap().to_owned();
        assert_eq!(
            std::fs::read_dir(directory).unwrap().count(),
            2,
            "image and manifest"
        );
    }
    let first = proxy.job(first.id);
    assert!(first.attempts > 1 && first.notes.len() > 1, "{first:?}");
    assert!(
        proxy.log().contains("begun again from the start"),
        "{}",
        proxy.log()
    );
}

/// The image has its name, and the daemon dies before it has filed the manifest: it is not made again.
#[test]
fn an_image_that_was_committed_is_verified_and_filed_by_the_next_daemon() {
    needs!("nbdkit");
    let server = Server::new(4 << 20, &[], &[]);
    let mut proxy = Proxy::new("jobs = 1", &server.table("web", ""));
    proxy.begin();
    let done = {
        let job = proxy.submit(&request("web", "x", "vm")).unwrap();
        proxy.wait_for_end(job.id)
    };
    let image = proxy.image(&done);
    let before = std::fs::metadata(&image).unwrap().modified().unwrap();
    proxy.kill();
    // As it was a moment before its end.
    let name = image.to_str().unwrap().replace(".vbi.zst", ".json");
    std::fs::remove_file(&name).unwrap();
    change(&proxy, done.id, |job| job["state"] = "verifying".into());
    proxy.begin();
    let again = proxy.wait_for_end(done.id);
    assert_eq!((again.state, again.attempts), (JobState::Done, 2), "{again:?}");
    assert_eq!(std::fs::metadata(&image).unwrap().modified().unwrap(), before);
    assert!(std::path::Path::new(&name).exists());

    // An image that is not what it was is set aside, and is not called good.
    proxy.kill();
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    change(&proxy, done.id, |job| job["state"] = "verifying".into());
    proxy.begin();
    let bad = proxy.wait_for_end(done.id);
    assert_eq!(bad.state, JobState::Failed);
    assert_eq!(bad.failure.unwrap().kind, "image-bad");
    assert!(!image.exists() && image.with_extension("zst.bad").exists());
}

/// What a job ends with is found in its image: nothing is forgotten with the daemon that made it.
#[test]
fn an_image_that_was_committed_is_held_against_the_request_by_the_next_daemon() {
    needs!("nbdkit");
    let server = Server::new(4 << 20, &[], &[]);
    for (name, value, kind, state) in [
        ("require-direct", 95.into(), "policy-missed", JobState::Done),
        (
            "frozen",
            uuid::Uuid::new_v4().to_string().into(),
            "frozen-image-gone",
            JobState::Failed,
        ),
    ] {
        let value: serde_json::Value = value;
        let mut proxy = Proxy::start("verify = false", &server.table("web", ""));
        let job = proxy.submit(&request("web", "x", "vm")).unwrap();
        let done = proxy.wait_for_end(job.id);
        assert_eq!(done.failure, None);
        let image = proxy.image(&done);
        proxy.kill();
        std::fs::remove_file(image.to_str().unwrap().replace(".vbi.zst", ".json")).unwrap();
        change(&proxy, done.id, |job| {
            job["state"] = "verifying".into();
            job["report"] = serde_json::Value::Null;
            job["request"][name] = value;
        });
        proxy.begin();
        let again = proxy.wait_for_end(done.id);
        assert_eq!(again.state, state, "{again:?}");
        assert_eq!(again.failure.as_ref().unwrap().kind, kind, "{again:?}");
        assert_eq!(image.exists(), state == JobState::Done, "{again:?}");
        assert_eq!(
            image.with_extension("zst.bad").exists(),
            state == JobState::Failed
        );
    }
}

/// Changes a job in the queue of a daemon that does not run.
fn change(proxy: &Proxy, id: u64, change: impl FnOnce(&mut serde_json::Value)) {
    use redb::{ReadableDatabase, TableDefinition};

    const JOBS: TableDefinition<u64, &[u8]> = TableDefinition::new("jobs");
    let database = redb::Database::open(proxy.path("jobs.redb")).unwrap();
    let text = {
        let transaction = database.begin_read().unwrap();
        let table = transaction.open_table(JOBS).unwrap();
        let row = table.get(id).unwrap().unwrap();
        let mut job: serde_json::Value = serde_json::from_slice(row.value()).unwrap();
        change(&mut job);
        serde_json::to_vec(&job).unwrap()
    };
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(JOBS)
        .unwrap()
        .insert(id, text.as_slice())
        .unwrap();
    transaction.commit().unwrap();
}

#[test]
fn a_daemon_that_is_asked_to_end_leaves_its_jobs_to_the_next() {
    needs!("nbdkit", "zstd");
    let server = Server::slow(150);
    let mut proxy = Proxy::start("stop-within = 0", &server.table("web", ""));
    let job = proxy.submit(&request("web", "x", "vm")).unwrap();
    proxy.wait_until(job.id, |job| {
        job.progress.is_some_and(|progress| progress.size > 0)
    });
    let begun = std::time::Instant::now();
    assert!(proxy.terminate().success());
    assert!(begun.elapsed() < std::time::Duration::from_secs(60));
    proxy.begin();
    let done = proxy.wait_for_end(job.id);
    assert_eq!(done.state, JobState::Done, "{done:?}");
    image::assert_holds(&proxy.image(&done), &server.volume());
}

#[test]
fn jobs_under_way_may_come_to_their_end() {
    needs!("nbdkit");
    let server = Server::slow(20);
    let mut proxy = Proxy::start("stop-within = 60", &server.table("web", ""));
    let job = proxy.submit(&request("web", "x", "vm")).unwrap();
    proxy.wait_until(job.id, |job| {
        job.progress.is_some_and(|progress| progress.size > 0)
    });
    assert!(proxy.terminate().success());
    proxy.begin();
    let done = proxy.job(job.id);
    assert_eq!((done.state, done.attempts), (JobState::Done, 1), "{done:?}");
}

/// Where the image of a job is while it is under way.
fn partial_of(proxy: &Proxy, job: &JobReport) -> std::path::PathBuf {
    let mut path = proxy.image(job).into_os_string();
    path.push(".partial");
    path.into()
}

/// With a frozen image nothing is done twice: the next daemon goes on from the last checkpoint.
#[test]
fn a_killed_daemon_goes_on_from_the_last_checkpoint() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut bytes = vec![0; 192 << 20];
    let mut state = 88_172_645_463_325_252_u64;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let mut site = Site::new(Mounted::xfs(640 << 20), &bytes);
    site.serve(&[]);
    let host = site.take_host();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(host.pid()).unwrap());
    let table = format!(
        "[host.web]\nuri = \"nbd+unix:///?socket={}\"\n",
        site.socket().display()
    );
    let mut proxy = Proxy::start("checkpoint-every = \"1M\"\nverify = false", &table);
    let listed = program::nbd_export(&["list", "--json", "--control", text(&site.control())]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let mut asked = request("web", VOLUME, "vm");
    asked.frozen = Some(
        listed["volumes"][0]["frozen"][0]["uuid"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap(),
    );
    let job = proxy.submit(&asked).unwrap();
    proxy.wait_until(job.id, |job| {
        job.progress.is_some_and(|progress| progress.done > 16 << 20)
    });
    // Whatever is under way then does not come to its end.
    kill(pid, Signal::SIGSTOP).unwrap();
    let so_far = std::fs::metadata(partial_of(&proxy, &job)).unwrap().len();
    assert!(so_far > 4 << 20, "{so_far}");
    proxy.kill();
    kill(pid, Signal::SIGCONT).unwrap();
    proxy.begin();
    let done = proxy.wait_for_end(job.id);
    assert_eq!((done.state, done.attempts), (JobState::Done, 2), "{done:?}");
    let gone_on = done
        .notes
        .iter()
        .any(|note| note.contains("gone on with from the last checkpoint"));
    assert!(gone_on, "{done:?}");
    assert_eq!(
        done.report.as_ref().unwrap()["frozen"],
        asked.frozen.unwrap().to_string()
    );
    image::assert_holds(&proxy.image(&done), &site.volume());

    // Thawed in the midst of it: the job says so, and nothing of it is left.
    let again = proxy
        .submit(&JobRequest {
            key: uuid::Uuid::new_v4(),
            ..asked
        })
        .unwrap();
    proxy.wait_until(again.id, |job| {
        job.progress.is_some_and(|progress| progress.done > 16 << 20)
    });
    kill(pid, Signal::SIGSTOP).unwrap();
    proxy.kill();
    kill(pid, Signal::SIGCONT).unwrap();
    program::nbd_export(&["thaw", VOLUME, "--control", text(&site.control())]);
    proxy.begin();
    let gone = proxy.wait_for_end(again.id);
    assert_eq!(gone.failure.as_ref().unwrap().exit_code, 5, "{gone:?}");
    assert!(!proxy.image(&gone).exists() && !partial_of(&proxy, &gone).exists());
}
