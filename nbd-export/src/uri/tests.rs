use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::proto::{ExportName, StringError};

fn parse(text: &str) -> Result<NbdUri, UriError> {
    text.parse()
}

fn uri(address: NbdAddress, export: &str) -> NbdUri {
    NbdUri {
        address,
        export: ExportName::new(export).unwrap(),
        tls: None,
    }
}

fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
    let host = host.into();
    uri(NbdAddress::Tcp { host, port }, export)
}

fn unix(path: &str, export: &str) -> NbdUri {
    uri(NbdAddress::Unix(path.into()), export)
}

fn secure(uri: NbdUri, directory: Option<&str>, hostname: Option<&str>) -> NbdUri {
    NbdUri {
        tls: Some(TlsParameters {
            directory: directory.map(Into::into),
            hostname: hostname.map(Into::into),
            fallback: None,
        }),
        ..uri
    }
}

#[test]
fn what_the_specification_shows_is_read() {
    for (text, expected) in [
        ("nbd://example.com", tcp("example.com", 10809, "")),
        ("nbd://example.com/", tcp("example.com", 10809, "")),
        ("nbd://example.com/disk", tcp("example.com", 10809, "disk")),
        ("nbd://example.com//disk", tcp("example.com", 10809, "/disk")),
        (
            "nbd://example.com/hello%20world",
            tcp("example.com", 10809, "hello world"),
        ),
        (
            "nbd://example.com:10809/export",
            tcp("example.com", 10809, "export"),
        ),
        ("nbd+unix:///export?socket=nbd.sock", unix("nbd.sock", "export")),
        ("nbd+unix:///?socket=%00/abstract", unix("\0/abstract", "")),
        (
            "nbds://example.com/disk",
            secure(tcp("example.com", 10809, "disk"), None, None),
        ),
        (
            "nbds+unix:///disk?socket=sock",
            secure(unix("sock", "disk"), None, None),
        ),
    ] {
        assert_eq!(parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn what_the_specification_allows_is_read() {
    assert_eq!(parse("NBD://[::1]/a%20b"), Ok(tcp("::1", 10809, "a b")));
    assert_eq!(parse("nbd://[::1]:1//a/b"), Ok(tcp("::1", 1, "/a/b")));
    assert_eq!(parse("nbd://h:/"), Ok(tcp("h", 10809, "")));
    assert_eq!(
        parse("nbd+unix:///vm@1?socket=/a%3Db%20c"),
        Ok(unix("/a=b c", "vm@1"))
    );
    assert_eq!(
        parse(
            "nbds+unix:///?tls-hostname=host.example&tls-verify-peer=1&&socket=/s&tls-type=x509&tls-certificates=/etc/p%26q"
        ),
        Ok(secure(unix("/s", ""), Some("/etc/p&q"), Some("host.example")))
    );
    // Plus is a plus.
    assert_eq!(parse("nbd://h/a+b"), Ok(tcp("h", 10809, "a+b")));
}

#[test]
fn what_cannot_be_used_is_named() {
    let value = |name, value: &str| UriError::Value {
        name,
        value: value.into(),
    };
    for (text, error) in [
        ("http://x", UriError::Scheme),
        ("disk.img", UriError::Scheme),
        ("nbd:unix:/s", UriError::Scheme),
        ("", UriError::Scheme),
        ("nbd+vsock://2/x", UriError::Unsupported("nbd+vsock".into())),
        ("nbds+ssh://h/x", UriError::Unsupported("nbds+ssh".into())),
        ("nbd:///x", UriError::NoHost),
        ("nbd://:10809/x", UriError::NoHost),
        ("nbd://h/a#b", UriError::Fragment),
        ("nbd+unix:///x", UriError::NoSocket),
        ("nbd+unix://h/x?socket=/s", UriError::HostForUnix),
        ("nbd://u@h/x", UriError::PreSharedKey("USER@".into())),
        ("nbds://u:secret@h/x", UriError::PreSharedKey("USER@".into())),
        ("nbds+unix://u:secret@/x", UriError::PreSharedKey("USER@".into())),
        (
            "nbds://h/x?tls-psk-file=/p",
            UriError::PreSharedKey("tls-psk-file".into()),
        ),
        (
            "nbds://h/?tls-type=psk",
            UriError::PreSharedKey("tls-type=psk".into()),
        ),
        (
            "nbds://h/?tls-type=anon",
            UriError::Unverified("tls-type=anon".into()),
        ),
        (
            "nbds://h/?tls-verify-peer=0",
            UriError::Unverified("tls-verify-peer=0".into()),
        ),
        ("nbds://h/?tls-verify-peer=yes", value("tls-verify-peer", "yes")),
        ("nbds://h/?tls-type=x", value("tls-type", "x")),
        ("nbds://h/?tls-hostname=a%20b", value("tls-hostname", "a b")),
        ("nbds://h/?tls-hostname=", value("tls-hostname", "")),
        ("nbds://h/?tls-certificates=", value("tls-certificates", "")),
        (
            "nbds://h/?tls-certificates=a%00b",
            value("tls-certificates", "a%00b"),
        ),
        ("nbd+unix:///?socket=", value("socket", "")),
        ("nbd+unix:///?socket=%00", value("socket", "%00")),
        ("nbd+unix:///?socket=/a%00b", value("socket", "/a%00b")),
        ("nbd://h/?socket=/s", UriError::Parameter("socket".into())),
        ("nbd://h/?x-mine=1", UriError::Parameter("x-mine".into())),
        (
            "nbds://h/?tls-hostnam=a",
            UriError::Parameter("tls-hostnam".into()),
        ),
        ("nbd+unix:///?socket=/s&tls", UriError::Parameter("tls".into())),
        (
            "nbd+unix:///?socket=/s&socket=/t",
            UriError::Twice("socket".into()),
        ),
        (
            "nbds://h/?tls-hostname=a&tls%2Dhostname=a",
            UriError::Twice("tls-hostname".into()),
        ),
        (
            "nbd://h/?tls-certificates=/p",
            UriError::NotEncrypted("tls-certificates".into()),
        ),
        (
            "nbd+unix:///?socket=/s&tls-verify-peer=1",
            UriError::NotEncrypted("tls-verify-peer".into()),
        ),
        ("nbd://h/%zz", UriError::Escape("%zz".into())),
        ("nbd://h/%f", UriError::Escape("%f".into())),
        ("nbd://h/%ff", UriError::Escape("%ff".into())),
        ("nbd://h/%00", UriError::Export(StringError::Nul)),
    ] {
        assert_eq!(parse(text), Err(error), "{text}");
    }
    for port in ["0", "65536", "x", "+1", "1:2", "-1"] {
        let text = format!("nbd://h:{port}/");
        assert_eq!(parse(&text), Err(UriError::BadPort(port.into())));
    }
    // CVE-2025-14946 begins with a dash.
    for host in [
        "-oProxyCommand=x",
        "-h",
        "%2dh",
        "[::1",
        "[::1]x",
        "[h]",
        "a b",
        "a%2fb",
        "a%00",
        "ü",
    ] {
        assert_eq!(
            parse(&format!("nbd://{host}/")),
            Err(UriError::BadHost(host.into()))
        );
    }
}

#[test]
fn a_server_is_known_by_its_host_unless_another_name_is_given() {
    let name = |text| parse(text).unwrap().server_name().to_owned();
    assert_eq!(name("nbds://h:1/"), "h");
    assert_eq!(name("nbds://[::1]:1/"), "::1");
    assert_eq!(name("nbds://h/?tls-hostname=other"), "other");
    assert_eq!(name("nbds+unix:///?socket=/s"), "localhost");
    assert_eq!(name("nbds+unix:///?socket=/s&tls-hostname=other"), "other");
}

#[test]
fn a_directory_of_the_command_line_yields_to_that_of_the_uri() {
    let with = |text| parse(text).unwrap().or_tls_directory(Some("/d".as_ref()));
    let directory = |uri: &NbdUri| {
        uri.tls
            .as_ref()
            .and_then(|tls| tls.directory().map(Path::to_owned))
    };
    for (text, expected) in [
        ("nbds://h:1/", Some("/d")),
        ("nbds://h:1/?tls-certificates=/mine", Some("/mine")),
        ("nbd://h:1/", None),
    ] {
        assert_eq!(directory(&with(text)), expected.map(Into::into), "{text}");
        // It does not become a part of the URI.
        assert_eq!(with(text).to_string(), text);
    }
    let moved = with("nbds://h:1/?tls-certificates=/mine").with_tls_directory("/new".as_ref());
    assert_eq!(directory(&moved), Some("/new".into()));
}

fn addresses() -> impl Strategy<Value = NbdAddress> {
    let path =
        proptest::collection::vec(1_u8.., 1..30).prop_map(|bytes| std::ffi::OsString::from_vec(bytes).into());
    let host = prop_oneof![
        "[a-z0-9_][a-z0-9._-]{0,20}",
        any::<std::net::Ipv6Addr>().prop_map(|a| a.to_string())
    ];
    prop_oneof![
        path.prop_map(NbdAddress::Unix),
        "\0[^\0]{1,20}".prop_map(|path| NbdAddress::Unix(path.into())),
        (host, 1_u16..).prop_map(|(host, port)| NbdAddress::Tcp { host, port }),
    ]
}

fn tls() -> impl Strategy<Value = Option<TlsParameters>> {
    let directory = proptest::option::of("[^\0]{1,20}".prop_map(Into::into));
    let hostname = proptest::option::of("[a-z]{1,9}(\\.[a-z]{1,9}){0,2}");
    proptest::option::of(
        (directory, hostname).prop_map(|(directory, hostname)| TlsParameters {
            directory,
            hostname,
            fallback: None,
        }),
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(address in addresses(), export in "[^\0]{0,30}", tls in tls()) {
        let export = ExportName::new(&export).unwrap();
        let uri = NbdUri { address, export, tls };
        prop_assert_eq!(parse(&uri.to_string()), Ok(uri));
    }

    #[test]
    fn whatever_is_read_is_written_so_that_it_means_the_same(text in "nbds?(\\+unix)?://[-a-z0-9:%/?=&.@\\[\\]#+]{0,40}") {
        if let Ok(uri) = parse(&text) {
            prop_assert_eq!(parse(&uri.to_string()), Ok(uri));
        }
    }
}

#[test]
fn a_set_is_named_where_one_can_be_meant_and_nowhere_else() {
    let text = "nbd://h/?set=db%40monday";
    let (uri, set) = NbdUri::with_set(text).unwrap();
    assert_eq!((uri, set.as_deref()), (tcp("h", 10809, ""), Some("db@monday")));
    assert_eq!(
        NbdUri::with_set("nbd://h/x").unwrap(),
        (tcp("h", 10809, "x"), None)
    );
    assert_eq!(parse(text), Err(UriError::Parameter("set".into())));
    assert!(NbdUri::with_set("nbd://h/?set=").is_err());
    assert!(NbdUri::with_set("nbd://h/?set=a&other=b").is_err());
}
