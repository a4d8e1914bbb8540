//! Allow lists: whoever is not on the list of a volume does not get to know that there is one.

use nbd_export::proto::ContextName;
use nbd_export::uri::NbdUri;
use proxy_client::nbd::{Connection, NbdError, list_contexts, list_exports};
use tests::pki::{Pki, Subject, TlsDirectory};
use tests::program::nbd_export;

use super::Served;

/// A URI of another export of the server, for a client.
fn uri(served: &Served, export: &str, client: &TlsDirectory) -> NbdUri {
    let mut uri: NbdUri = served.uri_with(client.text()).parse().unwrap();
    uri.export = nbd_export::proto::ExportName::new(export).unwrap();
    uri
}

async fn names(served: &Served, client: &TlsDirectory) -> Vec<String> {
    let exports = list_exports(&uri(served, "", client)).await.unwrap();
    exports
        .iter()
        .map(|export| export.name.as_str().to_owned())
        .collect()
}

/// How a server refuses an export, by each way to ask for it.
async fn refusals(served: &Served, export: &str, client: &TlsDirectory) -> Vec<String> {
    let uri = uri(served, export, client);
    let allocation = ContextName::new("base:allocation").unwrap();
    let asked: [Result<(), NbdError>; 3] = [
        Connection::connect(&uri, vec![]).await.map(|_| ()),
        Connection::connect(&uri, vec![allocation]).await.map(|_| ()),
        list_contexts(&uri, vec![]).await.map(|_| ()),
    ];
    asked.map(|result| result.unwrap_err().to_string()).into()
}

async fn enters(served: &Served, export: &str, client: &TlsDirectory) {
    let connection = Connection::connect(&uri(served, export, client), vec![]).await;
    connection
        .unwrap_or_else(|error| panic!("{export}: {error}"))
        .disconnect()
        .await;
}

#[tokio::test]
async fn a_volume_is_unknown_to_whom_it_is_not_allowed() {
    let pki = Pki::new();
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other.img");
    let tag = directory.path().join("tag");
    std::fs::write(&other, vec![7; 1 << 20]).unwrap();
    std::fs::write(&tag, vec![0; 64 << 10]).unwrap();
    let (volume, tag) = (
        format!("other={}", other.display()),
        format!("other={}", tag.display()),
    );
    let list = "other=trusted,Proxy,prox,proxy.example.org";
    // Tags are offered where writable exports are.
    let origins = ["--origin-listen", "127.0.0.1:0", "--tag", &tag];
    let served = Served::tcp(
        &pki,
        &[&[volume.as_str(), "--allow", list], &origins[..]].concat(),
    );
    let trusted = pki.another_client(Subject::client_by_dns(&["x.example", "trusted"]));
    assert_eq!(names(&served, &trusted).await, ["other", "vm"]);
    enters(&served, "other", &trusted).await;
    for stranger in [
        // `proxy`, which differs from every name on the list by a letter or more.
        &pki.client,
        &pki.another_client(Subject::client("trusted.example")),
        &pki.another_client(Subject::client_by_dns(&["proxy.example"])),
    ] {
        assert_eq!(names(&served, stranger).await, ["vm"]);
        let (hidden, absent) = ("other", "another");
        let told = refusals(&served, hidden, stranger).await;
        assert_eq!(
            told,
            refusals(&served, absent, stranger).await,
            "no way to tell the two apart"
        );
        refusals(&served, "other.tag", stranger).await;
        enters(&served, "vm", stranger).await;
        // The sole export of this client is its default.
        enters(&served, "", stranger).await;
    }
    refusals(&served, "", &trusted).await;
}

#[tokio::test]
async fn frozen_images_follow_their_volume() {
    let pki = Pki::new();
    let served = Served::tcp(&pki, &["--allow", "vm=trusted"]);
    let control = served.path("control");
    nbd_export(&["thaw", "vm", "--control", &control]);
    let trusted = pki.another_client(Subject::client("trusted"));
    nbd_export(&["freeze", "vm", "--as", "monday", "--control", &control]);
    assert_eq!(names(&served, &trusted).await, ["vm@monday"]);
    enters(&served, "vm@monday", &trusted).await;
    assert!(names(&served, &pki.client).await.is_empty());
    refusals(&served, "vm@monday", &pki.client).await;
    refusals(&served, "", &pki.client).await;
}

#[tokio::test]
async fn addresses_and_sockets_are_on_lists_too() {
    let pki = Pki::new();
    for (list, admitted) in [
        ("vm=127.0.0.1", true),
        ("vm=127.0.0.0/8", true),
        ("vm=::ffff:127.0.0.1", true),
        ("vm=127.0.0.11", false),
        ("vm=127.0.0.10/31", false),
        ("vm=unix", false),
        ("vm=unix,proxy", true),
    ] {
        let served = Served::tcp(&pki, &["--allow", list]);
        assert_eq!(!names(&served, &pki.client).await.is_empty(), admitted, "{list}");
    }
    for (list, admitted) in [("vm=unix", true), ("vm=127.0.0.1", false), ("vm=proxy", true)] {
        let served = Served::unix(&pki, &["--allow", list]);
        assert_eq!(!names(&served, &pki.client).await.is_empty(), admitted, "{list}");
    }
}
