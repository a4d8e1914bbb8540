//! What is given as the LUN is another disk, or a clone of it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proxy_client::error::{Error, ErrorKind};
use proxy_client::report::BackupReport;
use tests::ambush::{Ambush, Point};
use tests::disk::{LoopDisk, run, scratch};
use tests::peer::Peer;
use tests::program::{backup, proxy_client};
use tests::site::{Site, VOLUME, run_backup, text};
use tests::volume::noise;
use tests::{digest, needs, needs_loop_devices};

use super::{MIB, SIZE, overwrite, xfs_site};

/// A file of the LUN's size beside it.
fn other_disk(site: &Site, name: &str) -> (PathBuf, File) {
    let path = site.disk.outside().join(name);
    let file = File::create(&path).unwrap();
    file.set_len(fs::metadata(&site.disk.disk.lun).unwrap().len())
        .unwrap();
    (path, file)
}

/// A backup with another path as the LUN.
fn backup_from(site: &Site, lun: &Path, opener: &Ambush, audit_percent: f64) -> Result<BackupReport, Error> {
    let mut options = site.options(&site.uri(VOLUME));
    options.luns[0].path = lun.to_owned();
    options.audit_percent = audit_percent;
    run_backup(&options, opener)
}

fn assert_wrong_lun(site: &Site, lun: &Path) {
    let error = site.assert_failed(backup_from(site, lun, &Ambush::never(), 0.0), ErrorKind::WrongLun);
    assert_eq!(error.kind().exit_code(), 1);
}

#[test]
fn another_disk_is_not_taken_for_the_lun() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = xfs_site();
    site.serve(&[]);

    let (random, file) = other_disk(&site, "random");
    let extents = site.extents(&site.volume());
    for &(_, len, place) in &extents {
        file.write_all_at(&noise(7, usize::try_from(len).unwrap()), place)
            .unwrap();
    }
    assert_wrong_lun(&site, &random);

    let (zeroes, _) = other_disk(&site, "zeroes");
    assert_wrong_lun(&site, &zeroes);

    // One that ends before the volume begins, and one that ends within it: only the part that is there can be equal.
    let first = extents.iter().map(|&(_, _, place)| place).min().unwrap();
    let (short, file) = other_disk(&site, "short");
    file.set_len(first).unwrap();
    assert_wrong_lun(&site, &short);
    let cut = copy_of_lun(&site, "cut");
    let file = OpenOptions::new().write(true).open(&cut).unwrap();
    file.set_len(first + 12 * MIB as u64).unwrap();
    match backup_from(&site, &cut, &Ambush::never(), 0.0) {
        Ok(report) => assert!(site.assert_right(Ok(report)).bytes_nbd > 0),
        failed => drop(site.assert_failed(failed, ErrorKind::WrongLun)),
    }
}

/// A clone of the LUN as it is now.
fn copy_of_lun(site: &Site, name: &str) -> PathBuf {
    let copy = site.disk.outside().join(name);
    run("sync", &["-f", text(&site.disk.path)]);
    run("cp", &["--sparse=always", text(&site.disk.disk.lun), text(&copy)]);
    copy
}

/// Makes one block of a clone stale behind the samples: at the first read of data, all of them have been taken.
fn stale_behind_the_samples(site: &Site, clone: &Path) -> Ambush {
    let (_, _, place) = site.extents(&site.clone_of_volume())[0];
    let clone = clone.to_owned();
    Ambush::new(Point::BeforeRead, 0, move || {
        let file = OpenOptions::new().write(true).open(&clone).unwrap();
        file.write_all_at(&noise(7, 4096), place + 4 * MIB as u64)
            .unwrap();
        file.sync_all().unwrap();
    })
}

fn inspected(site: &Site) -> serde_json::Value {
    serde_json::from_str(&proxy_client(&["inspect", "--json", text(&site.image())])).unwrap()
}

#[test]
fn a_clone_with_one_stale_block_is_caught_by_the_tag() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = xfs_site();
    let tag = format!("{VOLUME}={}", site.path("vm.tag").display());
    site.serve(&["--tag", &tag]);
    let clone = copy_of_lun(&site, "clone");
    let ambush = stale_behind_the_samples(&site, &clone);
    let error = site.assert_failed(backup_from(&site, &clone, &ambush, 0.0), ErrorKind::WrongLun);
    assert_eq!(error.kind().exit_code(), 1);
    assert!(!ambush.has_sprung(), "nothing was read from the clone");

    let report = site.assert_right(site.backup(&Ambush::never()));
    assert_eq!(report.identity[0].proof, "tag");
    assert_eq!(report.bytes_direct, SIZE as u64, "{report:?}");
    assert_eq!(inspected(&site)["luns"][0]["proof"], "tag");
}

/// Samples cannot tell a clone; the receipt says that there was nothing more than them. A full audit can.
#[test]
fn without_a_tag_the_receipt_says_that_samples_are_all() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = xfs_site();
    site.serve(&[]);
    let clone = copy_of_lun(&site, "clone");
    let ambush = stale_behind_the_samples(&site, &clone);
    let report = backup_from(&site, &clone, &ambush, 0.0).unwrap();
    assert!(ambush.has_sprung());
    assert_eq!(report.identity[0].proof, "sampled only");
    assert_eq!(inspected(&site)["luns"][0]["proof"], "sampled only");
    assert_ne!(site.image_digest(), site.original, "the clone has to be stale");

    fs::remove_file(site.image()).unwrap();
    let ambush = stale_behind_the_samples(&site, &clone);
    let report = site.assert_right(backup_from(&site, &clone, &ambush, 100.0));
    assert!(
        report.identity[0].audit_failed && report.bytes_direct == 0,
        "{report:?}"
    );
}

/// The proxy's kernel may have cached blocks of the LUN before the host wrote to them (law P2).
#[test]
fn what_the_proxy_has_in_its_page_cache_is_not_read() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let mut site = xfs_site();
    run("sync", &["-f", text(&site.disk.path)]);
    // The cache of another loop device is another machine's cache; it stays as long as the device is open.
    let proxy = LoopDisk::on(&site.disk.disk.lun, &[]);
    let cached = File::open(&proxy.device).unwrap();
    for (_, len, place) in site.extents(&site.volume()) {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        cached.read_exact_at(&mut bytes, place).unwrap();
    }
    overwrite(&site.volume());
    site.original = digest::of_file(&site.volume());
    site.serve(&[]);
    let outcome = backup_from(&site, &proxy.device, &Ambush::never(), 0.0);
    drop(cached);
    let report = site.assert_right(outcome);
    assert_eq!(report.bytes_direct, SIZE as u64, "{report:?}");
}

/// nbdkit takes every name for its one export, `vm.tag` too, and lets us write: what is no tag has to be left alone.
#[test]
fn a_server_that_takes_any_name_is_not_written_to() {
    needs!("nbdkit");
    // As small as a tag, and larger.
    for size in [MIB, 20 * MIB] {
        let directory = scratch();
        let volume = directory.path().join("volume");
        let bytes = noise(1, size);
        fs::write(&volume, &bytes).unwrap();
        let server = Peer::nbdkit(&["file", text(&volume)]);
        let lun = format!("lun0={}", volume.display());
        let image = directory.path().join("image");
        let report = backup(&[&server.uri_text(VOLUME), "--output", text(&image), "--lun", &lun]);
        assert_eq!(report["bytes_nbd"], size, "{report}");
        assert_eq!(
            digest::of_file(&volume),
            blake3::hash(&bytes),
            "the server's disk was written to"
        );
    }
}
