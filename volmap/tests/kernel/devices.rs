//! Block devices, and disks without an identity.

use std::fs;
use std::path::PathBuf;

use volmap::freeze::{FreezeError, FreezeOptions, Method};
use volmap::frozen::{Attestation, FrozenError, Stability};
use volmap::identity::Identity;
use volmap::layers::Layers;
use volmap::store::Below;

use crate::rig::{Rig, path, pattern, read_all, run};

#[test]
fn a_block_device_is_frozen_only_on_the_operators_word() {
    let Some(rig) = Rig::new("a_block_device_is_frozen_only_on_the_operators_word", 8, &[]) else {
        return;
    };
    // Not a multiple of 4096.
    let bytes = pattern((1 << 20) + 512, 3);
    fs::write(&rig.lun, &bytes).unwrap();
    run("losetup", &["--set-capacity", rig.device.to_str().unwrap()]).unwrap();
    let freeze = |method, assume_exclusive| {
        let options = FreezeOptions {
            method,
            assume_exclusive,
            ..FreezeOptions::default()
        };
        rig.freeze_with(&rig.device, &options, rig.layers())
    };
    assert!(matches!(
        freeze(Method::Auto, false).map(drop),
        Err(FreezeError::Unfit { .. })
    ));
    assert!(matches!(
        freeze(Method::Static, false).map(drop),
        Err(FreezeError::NotWitnessed { .. })
    ));
    let image = freeze(Method::Auto, true).unwrap();
    let description = image.description();
    assert_eq!(
        (description.stability, description.attestation),
        (Stability::Pinned, Attestation::Unattested)
    );
    assert!(read_all(&*image) == bytes);
    let mut tail = [0; 700];
    image.read_at(image.size() - 700, &mut tail).unwrap();
    assert!(bytes.ends_with(&tail));
    drop(image);

    run("blockdev", &["--setro", rig.device.to_str().unwrap()]).unwrap();
    let image = freeze(Method::Static, false).unwrap();
    assert!(read_all(&*image) == bytes);
    run("blockdev", &["--setrw", rig.device.to_str().unwrap()]).unwrap();
    assert!(
        image.read_at(0, &mut [0]).is_err(),
        "it is frozen only because it is read-only"
    );
}

#[test]
fn a_mounted_device_is_refused() {
    let Some(rig) = Rig::ext4("a_mounted_device_is_refused") else {
        return;
    };
    let options = FreezeOptions {
        assume_exclusive: true,
        ..FreezeOptions::default()
    };
    let refused = rig.freeze_with(&rig.device, &options, rig.layers()).map(drop);
    assert!(
        matches!(refused, Err(FreezeError::DeviceInUse { .. })),
        "{refused:?}"
    );
}

#[test]
fn without_a_declaration_a_loop_device_is_opaque() {
    let Some(rig) = Rig::ext4("without_a_declaration_a_loop_device_is_opaque") else {
        return;
    };
    let volume = rig.mount.join("disk.img");
    fs::write(&volume, pattern(1 << 20, 1)).unwrap();
    let freeze = |declared: Vec<(PathBuf, Identity)>| {
        let layers = Layers::new(declared).unwrap();
        rig.freeze_with(&volume, &FreezeOptions::default(), layers)
            .unwrap()
    };
    let image = freeze(Vec::new());
    assert_eq!(image.description().stability, Stability::Opaque);
    let graph = image.graph();
    let reasons: Vec<&String> = graph
        .stores()
        .iter()
        .filter_map(|s| match &s.below {
            Below::Opaque(reason) => Some(reason),
            _ => None,
        })
        .collect();
    assert!(
        reasons.len() == 1 && reasons[0].contains("--identity"),
        "{reasons:?}"
    );
    assert!(read_all(&*image) == pattern(1 << 20, 1));
    drop(image);

    // The loop device itself may be declared, too.
    let image = freeze(vec![(
        rig.device.clone(),
        Identity::from_operator("lun0").unwrap(),
    )]);
    assert_eq!(image.description().stability, Stability::Pinned);
    assert_eq!(rig.read_as_proxy(&*image).1, 1 << 20);
}

#[test]
fn a_read_only_device_that_shows_another_file_or_size_is_gone() {
    let Some(mut rig) = Rig::new(
        "a_read_only_device_that_shows_another_file_or_size_is_gone",
        8,
        &[],
    ) else {
        return;
    };
    let lun = rig.lun.clone();
    let device = rig.attach(&lun, &["--read-only"]);
    let freeze = || {
        let options = FreezeOptions {
            method: Method::Static,
            ..FreezeOptions::default()
        };
        rig.freeze_with(&device, &options, rig.layers()).unwrap()
    };
    let number = path(&device);
    let image = freeze();
    image.read_at(0, &mut [0; 512]).unwrap();
    let other = rig.mount.join("other");
    fs::write(&other, pattern(8 << 20, 5)).unwrap();
    // LOOP_CHANGE_FD, for which losetup has no option.
    let script = "open(L, '<', $ARGV[0]); open(F, '<', $ARGV[1]); ioctl(L, 0x4c06, fileno(F)) or die $!";
    run("perl", &["-e", script, number, path(&other)]).unwrap();
    assert!(matches!(
        image.read_at(0, &mut [0; 512]),
        Err(FrozenError::Gone(_))
    ));
    drop(image);

    let image = freeze();
    let file = fs::File::options().write(true).open(&other).unwrap();
    file.set_len(9 << 20).unwrap();
    run("losetup", &["--set-capacity", number]).unwrap();
    assert!(matches!(
        image.read_at(0, &mut [0; 512]),
        Err(FrozenError::Gone(_))
    ));
}
