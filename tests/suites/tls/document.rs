//! The certificates that docs/tls.md makes, with the commands that it shows.

use std::process::Command;

use tests::needs;
use tests::program::proxy_client;

use super::{Served, run, stderr};

#[test]
fn the_commands_of_the_document_make_certificates_for_everybody() {
    needs!("certtool", "qemu-img");
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tls.md");
    let document = std::fs::read_to_string(document).unwrap();
    let (_, section) = document.split_once("## Making certificates").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let script: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .collect();
    assert!(script.len() > 8);
    let pki = tempfile::tempdir().unwrap();
    let made = Command::new("bash")
        .args(["-ec", &script.join("\n")])
        .current_dir(pki.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let directory = pki.path().to_str().unwrap();
    let served = Served::start(
        directory,
        &["--listen", "127.0.0.1:0", "--allow", "vm=proxy.example"],
    );
    let uri = format!("{}?tls-hostname=host1.example", served.uri());
    let size = proxy_client(&["info", "--size", &uri, "--tls-dir", directory]);
    assert_eq!(size.trim(), served.bytes.len().to_string());
    let port = served
        .uri()
        .rsplit_once(':')
        .unwrap()
        .1
        .split('/')
        .next()
        .unwrap();
    let credentials = format!("tls-creds-x509,id=tls,dir={directory},endpoint=client");
    let server = format!("server.type=inet,server.host=127.0.0.1,server.port={port}");
    let image = format!("driver=nbd,{server},export=vm,tls-creds=tls,tls-hostname=host1.example");
    let info = run(
        "qemu-img",
        &["info", "--object", &credentials, "--image-opts", &image],
    );
    assert!(info.status.success(), "{}", stderr(&info));
}
