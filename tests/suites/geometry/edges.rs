//! On real file systems and devices.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proxy_client::config::LunArgument;
use tests::ambush::Ambush;
use tests::digest;
use tests::disk::{LoopDisk, Mounted, run, scratch};
use tests::image::assert_holds;
use tests::needs_loop_devices;
use tests::program::{Host, backup, proxy_client};
use tests::site::{Site, VOLUME, run_backup, text};
use tests::volume::{noise, sparse};

const MIB: u64 = 1 << 20;

#[test]
fn a_volume_of_a_byte_more_than_a_gib_is_backed_up_to_its_last_byte() {
    needs_loop_devices!("mkfs.xfs", "zstd");
    let size = (1 << 30) + 1;
    let mut site = Site::new(Mounted::xfs(320 * MIB), &[]);
    let data = [0..70_000, 300 * MIB..302 * MIB, size - MIB - 1..size];
    sparse(&site.volume(), size, &data);
    site.serve(&[]);
    let report = run_backup(&site.options(&site.uri(VOLUME)), &Ambush::never()).unwrap();
    assert_eq!(report.size, size);
    assert!(
        report.bytes_direct >= 3 * MIB && report.bytes_nbd == 0,
        "{report:?}"
    );
    let wanted = digest::of_file(&site.volume());
    assert_eq!(site.image_digest(), wanted);
    let restored = site.disk.outside().join("restored");
    proxy_client(&["restore", text(&site.image()), "--output", text(&restored)]);
    assert_eq!(digest::of_file(&restored), wanted);
}

/// A file system that begins at an odd sector of the LUN, as behind an old partition table: no extent of its blocks of
/// 1 KiB begins at a block of the proxy's device, which has blocks of 4 KiB.
#[test]
fn extents_smaller_than_a_block_of_the_lun_are_cut_out_of_whole_blocks() {
    needs_loop_devices!("mkfs.xfs", "losetup", "zstd");
    const ODD: u64 = 63 * 512;
    let directory = scratch();
    let lun = LoopDisk::new(directory.path(), "lun", 400 * MIB, 4096);
    let inner = LoopDisk::on(&lun.lun, &["--offset", &ODD.to_string()]);
    let mount = Mount::new(
        &inner.device,
        directory.path(),
        &["mkfs.xfs", "-q", "-b", "size=1024", "-m", "reflink=1"],
    );

    // Odd blocks first, even ones after them, and a last extent of 512 bytes.
    let volume = mount.0.join("vm.img");
    let bytes = noise(1, usize::try_from(2 * MIB + 512).unwrap());
    let file = File::create(&volume).unwrap();
    for parity in [1, 0] {
        for (number, block) in bytes.chunks(1024).enumerate().filter(|(n, _)| n % 2 == parity) {
            file.write_all_at(block, number as u64 * 1024).unwrap();
        }
        file.sync_all().unwrap();
    }
    drop(file);

    let (socket, control) = (directory.path().join("nbd"), directory.path().join("control"));
    let host = Host::serve(&[
        &format!("{VOLUME}={}", volume.display()),
        "--identity",
        &format!("{}=lun0", lun.lun.display()),
        "--socket",
        text(&socket),
        "--control",
        text(&control),
    ]);
    let image = directory.path().join("image");
    let report = backup(&[
        host.uri(VOLUME),
        "--output",
        text(&image),
        "--lun",
        &format!("lun0={}", lun.device.display()),
    ]);
    assert_eq!(report["bytes_direct"], bytes.len(), "{report}");
    assert_holds(&image, &volume);
}

#[test]
fn an_extent_at_the_last_block_of_the_lun_is_read() {
    needs_loop_devices!("mkfs.ext4", "zstd");
    let mut site = Site::new(Mounted::ext4(16 * MIB), &[]);
    // One file takes all the space that there is.
    let mut file = OpenOptions::new().write(true).open(site.volume()).unwrap();
    let block = noise(3, 64 << 10);
    while file.write_all(&block).is_ok() {}
    for part in block.chunks(4096) {
        if file.write_all(part).is_err() {
            break;
        }
    }
    file.sync_all().unwrap();
    drop(file);
    let extents = site.extents(&site.volume());
    let end = extents.iter().map(|&(_, len, place)| place + len).max().unwrap();
    assert_eq!(end, 16 * MIB, "the file has to reach the end of the LUN");
    site.serve(&[]);
    let report = run_backup(&site.options(&site.uri(VOLUME)), &Ambush::never()).unwrap();
    assert_eq!(
        (report.bytes_direct, report.bytes_nbd),
        (report.size, 0),
        "{report:?}"
    );
    assert_holds(&site.image(), &site.volume());
}

/// The volume is the whole LUN, read as a file and as a device; the file may end within a block of the proxy's.
#[test]
fn a_whole_device_is_read_up_to_its_end() {
    needs_loop_devices!("zstd");
    for (sector, size) in [(4096, 16 * MIB + 4096), (512, 16 * MIB + 512)] {
        let directory = scratch();
        let lun = LoopDisk::new(directory.path(), "lun", size, sector);
        sparse(&lun.lun, size, &[0..3 * MIB, size - MIB..size]);
        let device = text(&lun.device);
        let (socket, control) = (directory.path().join("nbd"), directory.path().join("control"));
        let host = Host::serve(&[
            &format!("{VOLUME}={device}"),
            "--identity",
            &format!("{device}=lun0"),
            "--assume-exclusive",
            "--socket",
            text(&socket),
            "--control",
            text(&control),
        ]);
        let image = directory.path().join("image");
        for path in [&lun.lun, &lun.device] {
            let argument = format!("lun0={}", path.display());
            assert!(LunArgument::parse(&argument).is_ok());
            let report = backup(&[host.uri(VOLUME), "--output", text(&image), "--lun", &argument]);
            assert_eq!(report["size"], size);
            assert_eq!(report["bytes_direct"], size, "{report}");
            assert_holds(&image, &lun.lun);
            fs::remove_file(&image).unwrap();
        }
    }
}

/// A file system on a device, mounted; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &Path, directory: &Path, mkfs: &[&str]) -> Self {
        run(mkfs[0], &[&mkfs[1..], &[text(device)]].concat());
        let path = directory.join("mnt");
        fs::create_dir(&path).unwrap();
        run("mount", &[text(device), text(&path)]);
        Self(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[text(&self.0)]);
    }
}
