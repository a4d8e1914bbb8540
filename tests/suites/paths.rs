//! LUNs whose paths fail, hang, lie or lead elsewhere: the right bytes all the same, and a report that says how they were got.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proxy_client::config::LunArgument;
use proxy_client::error::{Error, ErrorKind};
use proxy_client::job::backup::BackupOptions;
use proxy_client::job::resume::{ResumeOptions, Resumed, resume};
use proxy_client::nbd::PoolOptions;
use proxy_client::pipeline::CheckpointEvery;
use proxy_client::progress::Progress;
use proxy_client::report::BackupReport;
use tests::ambush::Ambush;
use tests::cutting_proxy::{Cut, CuttingProxy};
use tests::disk::{LoopDisk, Mounted, run};
use tests::faulty_lun::{Fault, FaultyLuns};
use tests::needs_loop_devices;
use tests::site::{Site, VOLUME, run_backup, text};
use tests::volume::noise;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

/// A volume on a LUN to which there are two paths.
struct Paths {
    site: Site,
    first: PathBuf,
    second: PathBuf,
}

impl Paths {
    fn new() -> Self {
        Self::with(&noise(1, usize::try_from(SIZE).unwrap()))
    }

    /// A volume of these bytes.
    fn with(bytes: &[u8]) -> Self {
        let mut site = Site::new(Mounted::xfs(320 << 20), bytes);
        site.serve(&[]);
        let first = site.disk.disk.lun.clone();
        let second = first.with_file_name("second-path");
        std::os::unix::fs::symlink(&first, &second).unwrap();
        Self { site, first, second }
    }

    fn options(&self, luns: &[String]) -> BackupOptions {
        let mut options = self.site.options(&self.site.uri(VOLUME));
        options.luns = luns.iter().map(|lun| LunArgument::parse(lun).unwrap()).collect();
        options
    }

    fn both(&self) -> Vec<String> {
        [&self.first, &self.second]
            .map(|path| format!("lun0={}", text(path)))
            .to_vec()
    }

    /// Backs up with a checkpoint after each batch, and leaves of the image what somebody would who is killed in the middle.
    fn cut_off(&self, audit_percent: f64, luns: &FaultyLuns) -> BackupReport {
        let options = BackupOptions {
            audit_percent,
            checkpoints: Some(CheckpointEvery {
                bytes: 1,
                time: Duration::ZERO,
            }),
            ..self.options(&self.both()[..1])
        };
        let whole = self.site.assert_right(run_backup(&options, luns));
        let image = self.site.image();
        let mut partial = image.clone().into_os_string();
        partial.push(".partial");
        std::fs::rename(&image, &partial).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&partial).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        whole
    }

    fn to_go_on(&self) -> ResumeOptions {
        ResumeOptions {
            host_is_this_machine: true,
            ..ResumeOptions::new(self.site.image())
        }
    }

    fn backup(&self, faults: [Fault; 2]) -> (Result<BackupReport, Error>, FaultyLuns) {
        let [first, second] = faults;
        let mut options = self.options(&self.both());
        if faults.contains(&Fault::Hangs) {
            options.direct_timeout = Duration::from_secs(2);
        }
        let luns = FaultyLuns::new([(self.first.as_path(), first), (&self.second, second)]);
        (run_backup(&options, &luns), luns)
    }
}

/// Goes on with what was cut off.
fn go_on(options: &ResumeOptions, luns: &FaultyLuns) -> Result<BackupReport, Error> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let resumed = runtime.block_on(resume(options, luns, &Progress::hidden()));
    // Reads that hang do so for as long as the LUNs are there.
    runtime.shutdown_background();
    match resumed? {
        Resumed::Finished(report) => Ok(*report),
        Resumed::WasWhole(_) => panic!("it was cut off"),
    }
}

#[test]
fn where_one_path_fails_the_other_is_read_by() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let paths = Paths::new();
    for fault in [
        Fault::Errno(nix::libc::EIO),
        Fault::Errno(nix::libc::ENODEV),
        Fault::Hangs,
    ] {
        let begun = Instant::now();
        let (outcome, luns) = paths.backup([fault, Fault::None]);
        let report = paths.site.assert_right(outcome);
        assert_eq!(
            (report.bytes_direct, report.bytes_nbd),
            (SIZE, 0),
            "{fault:?}: {report:?}"
        );
        let [lun] = &report.identity[..] else {
            panic!("two paths are one LUN: {report:?}");
        };
        assert!(lun.paths[0].failures > 0 && lun.paths[1].failures == 0, "{lun:?}");
        assert_eq!(
            lun.paths[0].given_up.is_some(),
            fault != Fault::Errno(nix::libc::EIO),
            "{lun:?}"
        );
        assert_eq!(lun.bytes, SIZE);
        // A minute would be usual.
        assert!(begun.elapsed() < Duration::from_secs(50));
        drop(luns);
        std::fs::remove_file(paths.site.image()).unwrap();
    }
}

#[test]
fn where_every_path_fails_the_host_is_asked() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let paths = Paths::new();
    for faults in [
        [Fault::Errno(nix::libc::EIO); 2],
        [Fault::Hangs; 2],
        [Fault::Hangs, Fault::Errno(nix::libc::EIO)],
    ] {
        let (outcome, _luns) = paths.backup(faults);
        let report = paths.site.assert_right(outcome);
        assert_eq!((report.bytes_direct, report.bytes_nbd), (0, SIZE), "{report:?}");
        let told = report
            .transport_reasons
            .iter()
            .map(|reason| reason.bytes)
            .sum::<u64>();
        assert_eq!(told, SIZE, "every byte has a reason: {report:?}");
        std::fs::remove_file(paths.site.image()).unwrap();
    }
}

/// The other path leads to a clone that is out of date. It is proven like the first, though it may never be read by.
#[test]
fn a_path_to_another_disk_is_found_out_before_it_is_needed() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut paths = Paths::new();
    paths.second = paths.first.with_file_name("clone");
    let size = std::fs::metadata(&paths.first).unwrap().len();
    std::fs::write(&paths.second, noise(9, usize::try_from(size).unwrap())).unwrap();
    let (outcome, _luns) = paths.backup([Fault::None; 2]);
    let error = paths.site.assert_failed(outcome, ErrorKind::WrongLun);
    assert_eq!(error.context().path.as_deref(), Some(paths.second.as_path()));

    std::fs::write(&paths.second, noise(9, 1 << 20)).unwrap();
    let (outcome, _luns) = paths.backup([Fault::None; 2]);
    paths.site.assert_failed(outcome, ErrorKind::WrongLun);
}

/// What had been read from the LUN before its first wrong byte was found is thrown away with the rest.
#[test]
fn an_audit_that_finds_a_difference_begins_anew_without_the_lun() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let paths = Paths::new();
    let luns = FaultyLuns::new([(paths.first.as_path(), Fault::Lies)]);
    let mut options = paths.options(&paths.both()[..1]);
    options.audit_percent = 100.0;
    let report = paths.site.assert_right(run_backup(&options, &luns));
    assert_eq!((report.bytes_direct, report.bytes_nbd), (0, SIZE), "{report:?}");
    assert!(report.identity[0].audit_failed);

    std::fs::remove_file(paths.site.image()).unwrap();
    options.no_fallback = true;
    paths
        .site
        .assert_failed(run_backup(&options, &luns), ErrorKind::PolicyMissed);
}

/// Samples prove such a LUN again, so whoever goes on with the image has to be told.
#[test]
fn a_backup_that_goes_on_reads_nothing_from_a_lun_that_an_audit_found_to_differ() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    // Some batches.
    let paths = Paths::with(&vec![7; usize::try_from(72 * MIB).unwrap()]);
    let faults = || FaultyLuns::new([(paths.first.as_path(), Fault::Lies)]);
    let whole = paths.cut_off(100.0, &faults());
    assert!(whole.identity[0].audit_failed && whole.bytes_direct == 0);

    let options = ResumeOptions {
        audit_percent: Some(0.0),
        ..paths.to_go_on()
    };
    let luns = faults();
    let resumed = paths.site.assert_right(go_on(&options, &luns));
    assert_eq!(resumed.root, whole.root);
    assert!(
        resumed.identity[0].audit_failed && resumed.bytes_direct == 0,
        "{resumed:?}"
    );
    let data_reads = luns.reads(&paths.first).into_iter();
    assert_eq!(data_reads.filter(|(_, length)| *length > 32 << 10).count(), 0);
}

/// What the image says, and what is usual, does not count where something else is said.
#[test]
fn a_backup_that_goes_on_waits_for_disk_and_host_as_it_is_told() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let paths = Paths::with(&vec![7; usize::try_from(72 * MIB).unwrap()]);
    let whole = paths.cut_off(0.0, &FaultyLuns::new([(paths.first.as_path(), Fault::None)]));
    let luns = FaultyLuns::new([(paths.first.as_path(), Fault::Hangs)]);

    // The host is back at once, and nobody tries.
    let cut = Cut {
        connection: 1,
        after: 1 << 20,
    };
    let way = CuttingProxy::new(&paths.site.socket(), cut);
    let options = ResumeOptions {
        uri: Some(way.uri(VOLUME).parse().unwrap()),
        only_these_luns: true,
        nbd: PoolOptions {
            reconnect: Duration::ZERO,
            ..PoolOptions::default()
        },
        ..paths.to_go_on()
    };
    assert_eq!(go_on(&options, &luns).unwrap_err().kind(), ErrorKind::HostLost);

    let options = ResumeOptions {
        direct_timeout: Duration::from_millis(500),
        ..paths.to_go_on()
    };
    let begun = Instant::now();
    let resumed = paths.site.assert_right(go_on(&options, &luns));
    assert_eq!(resumed.root, whole.root);
    assert!(resumed.bytes_nbd > 0 && resumed.identity[0].paths[0].given_up.is_some());
    // A minute would be usual.
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
}

#[test]
fn only_ranges_that_are_allowed_are_read() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let paths = Paths::new();
    let frozen = paths.site.extents(&paths.site.volume());
    let (_, length, place) = frozen[0];
    for (ranges, wanted) in [
        (format!("{place}-{}", place + length), length),
        (format!("{place}-{}", place + length - 1), 0),
        (format!("0-{place}"), 0),
    ] {
        let luns = FaultyLuns::new([(paths.first.as_path(), Fault::None)]);
        let options = paths.options(&[format!("lun0={}@{ranges}", text(&paths.first))]);
        let report = paths.site.assert_right(run_backup(&options, &luns));
        assert_eq!(report.bytes_direct, wanted, "{ranges}: {report:?}");
        let (start, end) = ranges.split_once('-').unwrap();
        let (start, end): (u64, u64) = (start.parse().unwrap(), end.parse().unwrap());
        for (offset, length) in luns.reads(&paths.first) {
            // Rounding may touch one block.
            let inside = offset + 4096 > start && offset + (length as u64) < end + 4096;
            assert!(inside, "{ranges}: {length} bytes at {offset} were read");
        }
        std::fs::remove_file(paths.site.image()).unwrap();
    }
}

#[test]
fn without_a_fallback_a_backup_is_direct_or_none() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let paths = Paths::new();
    let mut options = paths.options(&paths.both());
    options.no_fallback = true;
    let report = paths.site.assert_right(run_backup(&options, &Ambush::never()));
    assert_eq!(report.bytes_direct, SIZE);
    std::fs::remove_file(paths.site.image()).unwrap();
    options.luns.clear();
    let error = paths
        .site
        .assert_failed(run_backup(&options, &Ambush::never()), ErrorKind::PolicyMissed);
    assert_eq!(error.kind().exit_code(), 4);
}

/// A copy of the LUN, of which the first bytes are the same.
fn copy_of(lun: &Path, size: u64) -> PathBuf {
    let copy = lun.with_file_name("copy");
    run("cp", &["--sparse=always", text(lun), text(&copy)]);
    let file = std::fs::OpenOptions::new().write(true).open(&copy).unwrap();
    file.set_len(size).unwrap();
    copy
}

/// Every byte came through the host, for a reason that has these words.
fn assert_through_host(report: &BackupReport, words: [&str; 2]) {
    assert_eq!((report.bytes_direct, report.bytes_nbd), (0, SIZE), "{report:?}");
    let told = report
        .transport_reasons
        .iter()
        .filter(|reason| words.iter().all(|word| reason.reason.contains(word)));
    assert_eq!(told.map(|reason| reason.bytes).sum::<u64>(), SIZE, "{report:?}");
    assert_eq!(report.identity[0].proof, "not proven", "{report:?}");
}

/// Its samples are those of the LUN, so the size is all that tells.
#[test]
fn a_disk_of_another_size_is_read_through_the_host() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut paths = Paths::new();
    let size = std::fs::metadata(&paths.first).unwrap().len();
    run("sync", &["-f", text(&paths.site.disk.path)]);
    let larger = size + MIB;
    paths.first = copy_of(&paths.first, larger);
    let lun = format!("lun0={}", text(&paths.first));
    let mut options = paths.options(std::slice::from_ref(&lun));
    options.require_direct = Some(50.0);
    let report = paths.site.assert_right(run_backup(&options, &Ambush::never()));
    assert_through_host(&report, [&larger.to_string(), &size.to_string()]);
    assert_eq!(report.policy_missed, Some(50.0));
    std::fs::remove_file(paths.site.image()).unwrap();

    options.no_fallback = true;
    let outcome = run_backup(&options, &Ambush::never());
    paths.site.assert_failed(outcome, ErrorKind::PolicyMissed);

    // With other bytes on it, it is another disk for certain.
    options.no_fallback = false;
    std::fs::write(&paths.first, noise(9, usize::try_from(larger).unwrap())).unwrap();
    let outcome = run_backup(&options, &Ambush::never());
    paths.site.assert_failed(outcome, ErrorKind::WrongLun);
}

#[test]
fn a_disk_of_another_block_size_is_read_through_the_host() {
    needs_loop_devices!("mkfs.xfs", "losetup", "zstd");
    let paths = Paths::new();
    run("sync", &["-f", text(&paths.site.disk.path)]);
    for (sector, is_direct) in [("512", true), ("4096", false)] {
        let proxys = LoopDisk::on(&paths.site.disk.disk.lun, &["--sector-size", sector]);
        let options = paths.options(&[format!("lun0={}", text(&proxys.device))]);
        let report = paths.site.assert_right(run_backup(&options, &Ambush::never()));
        if is_direct {
            assert_eq!((report.bytes_direct, report.bytes_nbd), (SIZE, 0), "{report:?}");
        } else {
            assert_through_host(&report, ["4096", "512"]);
        }
        std::fs::remove_file(paths.site.image()).unwrap();
    }
}

/// The host's side of it does not know yet that it has grown.
#[test]
fn a_disk_that_grows_is_read_directly_where_a_tag_proves_it() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    for tagged in [false, true] {
        let bytes = noise(1, usize::try_from(SIZE).unwrap());
        let mut site = Site::new(Mounted::xfs(320 << 20), &bytes);
        let tag = format!("{VOLUME}={}", site.path("vm.tag").display());
        let arguments = ["--tag", &tag];
        site.serve(if tagged { &arguments } else { &[] });
        let lun = std::fs::OpenOptions::new()
            .write(true)
            .open(&site.disk.disk.lun)
            .unwrap();
        lun.set_len(lun.metadata().unwrap().len() + MIB).unwrap();
        let report = site.assert_right(site.backup(&Ambush::never()));
        if tagged {
            assert_eq!((report.bytes_direct, report.bytes_nbd), (SIZE, 0), "{report:?}");
        } else {
            assert_through_host(&report, [" bytes here", " on the host"]);
        }
    }
}
