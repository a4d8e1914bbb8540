//! Disks of guests in QEMU.

use std::path::Path;

/// What a disk is plugged into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bus {
    /// virtio-scsi: `/dev/sda`, `/dev/sdb`, …
    Scsi,
    /// A controller of its own for each: `/dev/nvme0n1`, `/dev/nvme1n1`, … once the driver is loaded.
    Nvme,
    /// virtio-blk: `/dev/vda`, `/dev/vdb`, …
    Virtio,
}

/// A disk of a guest in QEMU.
#[derive(Clone, Copy, Debug)]
pub struct VirtualDisk<'a> {
    /// What it holds. Several disks, in one guest or in two, may have the same, as paths to one LUN do.
    pub file: &'a Path,
    /// What it is plugged into.
    pub bus: Bus,
    /// Its logical blocks.
    pub block_size: u32,
    /// Its names, as properties of QEMU's: `wwn=0x…`, `nguid=…,eui64=…,uuid=…`, `serial=…`, by the bus. It may have none.
    pub names: &'a str,
}

/// QEMU's arguments for disks.
pub(super) fn arguments(disks: &[VirtualDisk]) -> Vec<String> {
    let mut arguments = vec!["-device".to_owned(), "virtio-scsi-pci,id=scsi".to_owned()];
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    for (number, disk) in disks.iter().enumerate() {
        let file = disk.file.display();
        // O_DIRECT, so that what one guest has written the other reads; and nothing keeps two from the file.
        add(
            "-drive",
            format!("file={file},format=raw,if=none,id=disk{number},cache=none,file.locking=off"),
        );
        let device = match disk.bus {
            Bus::Scsi => "scsi-hd,bus=scsi.0".to_owned(),
            Bus::Nvme => {
                add(
                    "-device",
                    format!("nvme,id=nvme{number},serial=controller{number}"),
                );
                format!("nvme-ns,bus=nvme{number}")
            }
            Bus::Virtio => "virtio-blk-pci".to_owned(),
        };
        let size = disk.block_size;
        let names = match disk.names {
            "" => String::new(),
            names => format!(",{names}"),
        };
        add(
            "-device",
            format!(
                "{device},drive=disk{number},share-rw=on,logical_block_size={size},physical_block_size={size}{names}"
            ),
        );
    }
    arguments
}
