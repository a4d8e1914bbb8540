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

/// The tag of `other`, or what would be called so, where tags are offered: where writable exports are.
fn tag_uri(served: &Served, name: &str, client: &TlsDirectory) -> NbdUri {
    let uri = served.host.uri("other.tag").replace("other.tag", name);
    format!("{uri}?tls-certificates={}", client.text())
        .parse()
        .unwrap()
}

async fn names(served: &Served, client: &TlsDirectory) -> Vec<String> {
    let exports = list_exports(&uri(served, "", client)).await.unwrap();
    exports
        .iter()
        .map(|export| export.name.as_str().to_owned())
        .collect()
}

/// How a server refuses an export, by each way to ask for it.
async fn refusals(uri: &NbdUri) -> Vec<String> {
    let allocation = ContextName::new("base:allocation").unwrap();
    let asked: [Result<(), NbdError>; 3] = [
        Connection::connect(uri, vec![]).await.map(|_| ()),
        Connection::connect(uri, vec![allocation]).await.map(|_| ()),
        list_contexts(uri, vec![]).await.map(|_| ()),
    ];
    asked.map(|result| result.unwrap_err().to_string()).into()
}

async fn enters(uri: &NbdUri) {
    let connection = Connection::connect(uri, vec![]).await;
    connection
        .unwrap_or_else(|error| panic!("{uri}: {error}"))
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
    enters(&uri(&served, "other", &trusted)).await;
    enters(&tag_uri(&served, "other.tag", &trusted)).await;
    for stranger in [
        // `proxy`, which differs from every name on the list by a letter or more.
        &pki.client,
        &pki.another_client(Subject::client("trusted.example")),
        &pki.another_client(Subject::client_by_dns(&["proxy.example"])),
    ] {
        assert_eq!(names(&served, stranger).await, ["vm"]);
        for (hidden, absent) in [
            (uri(&served, "other", stranger), uri(&served, "another", stranger)),
            (
                tag_uri(&served, "other.tag", stranger),
                tag_uri(&served, "another.tag", stranger),
            ),
        ] {
            assert_eq!(
                refusals(&hidden).await,
                refusals(&absent).await,
                "no way to tell the two apart"
            );
        }
        enters(&uri(&served, "vm", stranger)).await;
        // The sole export of this client is its default.
        enters(&uri(&served, "", stranger)).await;
    }
    refusals(&uri(&served, "", &trusted)).await;
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
    enters(&uri(&served, "vm@monday", &trusted)).await;
    assert!(names(&served, &pki.client).await.is_empty());
    refusals(&uri(&served, "vm@monday", &pki.client)).await;
    refusals(&uri(&served, "", &pki.client)).await;
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
