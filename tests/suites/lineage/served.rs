//! Chains, read where they lie.

use std::os::unix::fs::FileExt;

use tests::disk::run;
use tests::program::Host;
use tests::site::text;
use tests::{needs, needs_loop_devices};

use super::MIB;
use super::backups::Scene;

/// Two images that continue each other are two volumes, each as it was frozen.
#[test]
fn every_image_of_a_chain_is_served_as_it_was_frozen() {
    needs_loop_devices!("mkfs.xfs");
    needs!("nbdcopy");
    let scene = Scene::new();
    let (agent, live) = (&scene.agent, scene.live());
    let mon = agent.freeze("mon");
    scene.back_up(&mon, "mon.vbi.zst", &[]);
    agent.thaw(&mon, &[]);
    live.write_all_at(&[7; 4096], 5 * MIB).unwrap();
    live.set_len(9 * MIB + 5).unwrap();
    let tue = agent.freeze("tue");
    scene.back_up(
        &tue,
        "tue.vbi.zst",
        &["--parent", text(&scene.path("mon.vbi.zst"))],
    );
    let socket = scene.path("socket");
    let images = ["mon.vbi.zst", "tue.vbi.zst"].map(|name| scene.path(name));
    let host = Host::serve_images(&[text(&images[0]), text(&images[1]), "--socket", text(&socket)]);
    for (name, frozen) in [("mon", &mon), ("tue", &tue)] {
        let copy = scene.path("copy");
        run("nbdcopy", &[host.uri(name), text(&copy)]);
        assert!(std::fs::read(&copy).unwrap() == frozen.bytes, "{name}");
    }
    assert!(host.terminate().success());
}
