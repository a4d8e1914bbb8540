//! What is written over an image.

use super::{Ground, MIB, assert_same, qemu_io};
use tests::disk::run;
use tests::needs;
use tests::program::{Host, fails, proxy_client};
use tests::site::text;

fn write(uri: &str, command: &str) {
    let output = qemu_io(uri, &[], command);
    assert!(output.status.success(), "{command}: {output:?}");
}

/// The same on a plain file.
fn write_to(file: &std::path::Path, command: &str) {
    run("qemu-io", &["-f", "raw", "-c", command, text(file)]);
}

#[test]
fn what_is_written_is_read_again_and_the_image_is_as_it_was() {
    needs!("qemu-io", "nbdinfo", "nbdcopy");
    let ground = Ground::new();
    let before = tests::digest::of_file(&ground.image);
    let overlay = ground.path("overlay");
    let with_overlay = ["--overlay", text(&overlay)];
    let host = ground.serve(&with_overlay);
    let uri = host.uri("volume").to_owned();
    assert!(!run("nbdinfo", &[&uri]).contains("is_read_only: true"));
    // Within a unit, over its end, over a hole, over data that are written, zeroes over data, and what is given back.
    for command in [
        "write -P 1 100 10",
        "write -P 2 4090 5000",
        "write -P 3 6M 1M",
        "write -z 3M 100k",
        "write -P 4 33554000 400",
        "write -z -u 21M 1M",
    ] {
        write(&uri, command);
        write_to(&ground.path("volume"), command);
    }
    let copy = ground.path("copy");
    run("nbdcopy", &[&uri, text(&copy)]);
    assert_same(&copy, &ground.path("volume"));

    // Killed: what was flushed is there. It ends with a signal: so is what was not.
    write(&uri, "write -f -P 5 10M 64k");
    write_to(&ground.path("volume"), "write -P 5 10M 64k");
    host.kill();
    for last in [true, false] {
        let host = ground.serve(&with_overlay);
        proxy_client(&["copy", "--force", &uri, text(&copy)]);
        assert_same(&copy, &ground.path("volume"));
        if last {
            write(&uri, "write -P 6 11M 4k");
            write_to(&ground.path("volume"), "write -P 6 11M 4k");
        }
        assert!(host.terminate().success());
    }
    assert_eq!(tests::digest::of_file(&ground.image), before);
    let host = ground.serve(&[]);
    proxy_client(&["copy", "--force", host.uri("volume"), text(&copy)]);
    tests::image::assert_holds(&ground.image, &copy);
}

#[test]
fn an_overlay_is_for_one_image_and_one_server_and_for_this_machine() {
    needs!("nbdinfo");
    let ground = Ground::new();
    let overlay = ground.path("overlay");
    let host = ground.serve(&["--overlay", text(&overlay), "--listen", "127.0.0.1:0"]);
    let socket = ground.path("another");
    let again = [
        "serve",
        text(&ground.image),
        "--socket",
        text(&socket),
        "--overlay",
        text(&overlay),
    ];
    assert_eq!(fails("proxy-client", 1, &again)["kind"], "target-busy");
    assert!(run("nbdinfo", &["--list", host.uri("volume")]).contains("volume"));
    assert_eq!(host.uris.len(), 1, "{:?}", host.uris);
    assert!(host.uris[0].starts_with("nbd+unix:"), "{:?}", host.uris);
    assert!(host.terminate().success());

    // Of another image, and no overlay at all.
    let other = ground.path("other");
    tests::volume::dense(&other, 32 * MIB);
    let image = tests::image::of(&other);
    let with = |overlay: &std::path::Path| {
        let arguments = [
            "serve",
            text(&image),
            "--socket",
            text(&socket),
            "--overlay",
            text(overlay),
        ];
        fails("proxy-client", 1, &arguments)["kind"].clone()
    };
    assert_eq!(with(&overlay), "output-exists");
    assert_eq!(with(&other), "output-exists");
    assert!(!socket.exists());
    assert_eq!(std::fs::metadata(&other).unwrap().len(), 32 * MIB);
}

#[test]
fn an_image_without_an_overlay_takes_no_writes() {
    needs!("qemu-io");
    let ground = Ground::new();
    let host: Host = ground.serve(&[]);
    let uri = host.uri("volume");
    for command in ["write 0 4k", "write -z 0 4k", "discard 0 1M"] {
        assert!(!qemu_io(uri, &[], command).status.success(), "{command}");
    }
    tests::image::assert_holds(&ground.image, &ground.path("volume"));
}
