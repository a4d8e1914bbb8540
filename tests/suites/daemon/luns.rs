//! What a host may have read for it, and LUNs that the proxy itself uses.

use nbd_export::proxy::JobState;
use proxy_client::job::backup::AUDIT_PERCENT;
use proxy_client::job::inspect::inspect;
use proxy_client::transport::direct::{DirectOpener, LunOpener};
use tests::daemon::{Proxy, request};
use tests::disk::{LoopDisk, Mounted, run};
use tests::image;
use tests::needs_loop_devices;
use tests::site::{Site, VOLUME};

fn tables(site: &Site, more: &str, luns: &str) -> String {
    format!(
        "[lun.disk]\npath = {:?}\nidentity = \"lun0\"\n[host.web]\nuri = \"nbd+unix:///?socket={}\"\n{more}\nluns = {luns}\n",
        site.disk.disk.device,
        site.socket().display()
    )
}

fn site() -> Site {
    let bytes: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_le_bytes).collect();
    let mut site = Site::new(Mounted::xfs(320 << 20), &bytes);
    site.serve(&[]);
    site
}

#[test]
fn only_what_is_allowed_is_read_and_not_what_the_proxy_uses() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let site = site();
    for (more, luns, direct) in [
        ("is-this-machine = true", "[\"disk\"]", Some(4_u64 << 20)),
        ("is-this-machine = true", "[]", Some(0)),
        (
            "is-this-machine = true",
            "[{ lun = \"disk\", ranges = [\"0..512\"] }]",
            Some(0),
        ),
        ("", "[\"disk\"]", None),
    ] {
        let proxy = Proxy::start("", &tables(&site, more, luns));
        let job = proxy.submit(&request("web", VOLUME, "vm")).unwrap();
        let ended = proxy.wait_for_end(job.id);
        let Some(direct) = direct else {
            // The file system on it is mounted here.
            assert_eq!(ended.state, JobState::Failed);
            assert_eq!(ended.failure.unwrap().kind, "lun-in-use");
            assert!(!proxy.image(&job).exists());
            continue;
        };
        assert_eq!(ended.state, JobState::Done, "{luns}: {ended:?}");
        let path = proxy.image(&ended);
        image::assert_holds(&path, &site.volume());
        let told = inspect(&path).unwrap().header.job.unwrap();
        assert_eq!(told.audit_percent, AUDIT_PERCENT, "nobody asked for another");
        assert_eq!(
            ended.report.as_ref().unwrap()["bytes_direct"],
            direct,
            "{luns}: {ended:?}"
        );
    }
}

/// An image that was begun earlier says where its LUNs were; the configuration says where they are, and whether they may be read.
#[test]
fn a_job_that_goes_on_reads_the_luns_of_the_configuration_and_no_others() {
    needs_loop_devices!("mkfs.xfs", "zstd", "prlimit");
    let mut site = Site::new(Mounted::xfs(320 << 20), &tests::volume::noise(1, 24 << 20));
    site.serve(&[]);
    let (before, now) = (
        site.disk.outside().join("before"),
        site.disk.outside().join("now"),
    );
    let lines = "checkpoint-every = \"1M\"";
    let at = |path: &std::path::Path, luns: &str| {
        format!(
            "[lun.disk]\npath = {path:?}\nidentity = \"lun0\"\n[host.web]\nuri = \"nbd+unix:///?socket={}\"\n\
             is-this-machine = true\nluns = {luns}\n",
            site.socket().display()
        )
    };
    for (luns, direct) in [("[\"disk\"]", true), ("[]", false)] {
        std::os::unix::fs::symlink(&site.disk.disk.device, &before).unwrap();
        let mut proxy = Proxy::start(lines, &at(&before, "[\"disk\"]"));
        let job = proxy.submit_and_be_killed_at(&request("web", VOLUME, "vm"), 20 << 20);
        let partial = proxy.path("images").join("web/vm");
        for e in std::fs::read_dir(&partial).unwrap() {
            let p = e.unwrap().path();
            let b = std::fs::read(&p).unwrap();
            let _ = b;
        }
        std::fs::rename(&before, &now).unwrap();
        proxy.reconfigure(lines, &at(&now, luns));
        proxy.begin();
        let done = proxy.wait_for_end(job);
        assert_eq!(done.state, JobState::Done, "{done:?}\n{}", proxy.log());
        image::assert_holds(&proxy.image(&done), &site.volume());
        let report = done.report.as_ref().unwrap();
        let bytes = |name: &str| report[name].as_u64().unwrap();
        assert!(
            done.notes
                .iter()
                .any(|note| note.contains("from the last checkpoint")),
            "{done:?}"
        );
        assert_eq!(bytes("bytes_nbd") == 0, direct, "{report}");
        std::fs::remove_file(&now).unwrap();
    }
}

/// Two jobs read one LUN: the first that ends does not make it writable under the other.
#[test]
fn a_lun_is_read_only_until_its_last_reader_is_gone() {
    needs_loop_devices!();
    let directory = tests::disk::scratch();
    let disk = LoopDisk::new(directory.path(), "lun", 16 << 20, 512);
    let device = disk.device.to_str().unwrap();
    let read_only = || run("blockdev", &["--getro", device]).trim() == "1";
    let open = || DirectOpener.open(&disk.device).unwrap();
    let (first, second) = (open(), open());
    assert!(read_only());
    drop(first);
    assert!(read_only());
    let third = open();
    drop(second);
    assert!(read_only());
    drop(third);
    assert!(!read_only());
    // One that the administrator set so stays so.
    run("blockdev", &["--setro", device]);
    drop(open());
    assert!(read_only());
    run("blockdev", &["--setrw", device]);
}

#[test]
fn a_job_is_of_its_frozen_image_and_a_lun_is_read_by_as_many_as_may() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let site = site();
    let proxy = Proxy::start("", &tables(&site, "is-this-machine = true", "[\"disk\"]"));
    let mut other = request("web", VOLUME, "vm");
    other.frozen = Some(uuid::Uuid::new_v4());
    let first = proxy.submit(&other).unwrap();
    let second = proxy.submit(&request("web", VOLUME, "vm")).unwrap();
    let failed = proxy.wait_for_end(first.id);
    assert_eq!(failed.failure.as_ref().unwrap().exit_code, 5, "{failed:?}");
    let directory = proxy.image(&failed).parent().unwrap().to_owned();
    let made = || std::fs::read_dir(&directory).unwrap().count();
    let done = proxy.wait_for_end(second.id);
    assert_eq!(done.state, JobState::Done);
    assert_eq!(made(), 2, "of the wrong one not a byte was written");
    assert!(
        done.started >= failed.ended,
        "one LUN, one job: {done:?} {failed:?}"
    );
}
