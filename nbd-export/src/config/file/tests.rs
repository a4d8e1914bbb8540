//! Files that say what they say, and files that cannot be meant.

use super::*;
use crate::config::Listener;
use crate::server::{Audience, Client};

/// The example of docs/serve.md, but for what has to be there to be looked up.
fn example() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/serve.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, behind) = page.split_once("```toml\n").unwrap();
    let (example, _) = behind.split_once("```").unwrap();
    example
        .lines()
        .filter(|line| !line.starts_with("files") && !line.starts_with("filesystem"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn parsed(text: &str) -> Result<ServeConfig, Error> {
    ServeConfig::parse(text, Vec::new())
}

fn why(text: &str) -> String {
    let error = parsed(text).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
    error.to_string()
}

#[test]
fn the_example_of_the_document_is_what_it_says() {
    let config = parsed(&example()).unwrap();
    let names =
        |found: &mut dyn Iterator<Item = &VolumeName>| found.map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        names(&mut config.volumes.iter().map(|volume| &volume.name)),
        ["archive", "db", "vm1"]
    );
    assert_eq!(
        names(&mut config.origins.iter().map(|origin| &origin.name)),
        ["vm2"]
    );
    assert_eq!(
        names(&mut config.writables.iter().map(|writable| &writable.name)),
        ["new"]
    );
    assert_eq!(names(&mut config.tags.iter().map(|tag| &tag.name)), ["vm1"]);
    assert_eq!(names(&mut config.freeze_at_start.iter()), ["archive"]);
    let volume = |name: &str| {
        config
            .volumes
            .iter()
            .find(|volume| volume.name.as_str() == name)
            .unwrap()
    };
    assert_eq!(volume("db").freezing.method, FreezeMethod::LvmSnapshot);
    assert!(volume("db").freezing.snapshot_size.is_some() && volume("vm1").freezing.snapshot_size.is_none());
    assert!(volume("archive").freezing.assume_exclusive && !volume("vm1").freezing.assume_exclusive);
    let area = &config.origins[0].copy_area;
    assert_eq!(
        (area.size, area.path.to_str()),
        (Some(20 << 30), Some("/srv/vm/vm2.copy"))
    );
    let [set] = &config.sets[..] else {
        panic!("one set")
    };
    assert_eq!((set.name.as_str(), set.members.len()), ("crm", 2));
    assert!(matches!(
        &config.listeners[..],
        [
            Listener::Unix { plaintext: false, .. },
            Listener::Unix { plaintext: true, .. },
            Listener::Tcp { writable: false, .. }
        ]
    ));
    assert!(config.tls_directory.is_some() && config.control.as_ref().is_some_and(|control| control.given));
    assert_eq!(config.hooks.timeout, Duration::from_secs(60));
    assert_eq!(config.keep_for_incremental, 1);
    assert_eq!(config.identities.len(), 1);
    assert_eq!(config.limits.connections, 64);
    assert_eq!(names(&mut config.on_request.names.iter()), ["vm1", "crm"]);
    assert_eq!(
        (config.on_request.most, config.on_request.hold),
        (2, Duration::from_secs(900))
    );
}

#[test]
fn a_list_that_is_empty_is_for_nobody() {
    let local = Client {
        audience: Audience { writable: true },
        address: None,
        names: Vec::new(),
    };
    let admits = |allow: &str| {
        let config = parsed(&format!("[volume.vm]\npath = \"/v\"\n{allow}")).unwrap();
        config.access.admit("vm", &local)
    };
    assert!(admits("") && admits("allow = [\"unix\"]"));
    assert!(!admits("allow = []") && !admits("allow = [\"10.0.0.1\"]"));
}

#[test]
fn the_list_of_a_set_is_that_of_its_volumes() {
    let text = "[set.s]\nallow = [\"10.0.0.1\"]\nvolume.a.path = \"/a\"\nvolume.b.path = \"/b\"";
    let config = parsed(text).unwrap();
    assert_eq!(config.access.volumes().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (line, text) in [
        (1, "sate-dir = \"/s\""),
        (2, "[volume.vm]\npaht = \"/v\""),
        (2, "[volume.vm]\npath = \"v\""),
        (3, "[volume.vm]\npath = \"/v\"\nallow = [\"a/b\"]"),
        (3, "[volume.vm]\npath = \"/v\"\nallow = [\"a \"]"),
        (3, "[volume.vm]\npath = \"/v\"\nallow = [\"\"]"),
        (3, "[volume.vm]\npath = \"/v\"\nfreeze = \"often\""),
        (1, "[volume.\"v m\"]\npath = \"/v\""),
        (1, "[volume.\"../v\"]\npath = \"/v\""),
        (2, "[listen]\nmax-connections = 0"),
        (2, "[listen]\nmax-connections = 16385"),
        (2, "[listen]\nhandshake-timeout = 3601"),
        (2, "[hooks]\ntimeout = 0"),
        (1, "keep-for-incremental = 1000"),
        (
            2,
            "[origin.o]\ncopy-area = { path = \"/a\", size = \"1X\" }\npath = \"/o\"",
        ),
        (
            2,
            "[origin.o]\ncopy-area = { path = \"/a\", on-full = \"wait\" }\npath = \"/o\"",
        ),
        (2, "[identity]\n\"/a\" = \"\""),
        (2, "[set.s]\nfiles = [\"/a/*.img\", \"*.img\"]"),
        (2, "[on-request]\nlongest = 86401"),
        (2, "[volume.vm]\n[volume.vm]"),
        (1, "[volume.vm]\nallow = []"),
    ] {
        let told = why(text);
        assert!(
            told.contains(&format!("at line {line}, column ")),
            "{text}\n{told}"
        );
    }
}

#[test]
fn what_takes_two_places_to_be_wrong_is_refused_by_name() {
    let volume = "[volume.vm]\npath = \"/v\"\n";
    for (names, more) in [
        ("nothing to serve", "!"),
        ("vm", "[origin.vm]\npath = \"/o\"\ncopy-area.path = \"/a\""),
        ("set vm", "[set.vm]\nvolume.a.path = \"/a\""),
        ("set.s", "[set.s]\nfreeze = \"auto\""),
        ("no origin is called o", "[set.s]\norigins = [\"o\"]"),
        (
            "set.s",
            "[set.s]\norigins = [\"o\"]\nfreeze-at-start = true\n[origin.o]\npath = \"/o\"\ncopy-area.path = \"/c\"",
        ),
        (
            "each of its origins",
            "[set.s]\norigins = [\"o\"]\nallow = [\"10.0.0.1\"]\n[origin.o]\npath = \"/o\"\ncopy-area.path = \"/c\"",
        ),
        (
            "named twice",
            "[set.s]\norigins = [\"o\", \"o\"]\n[origin.o]\npath = \"/o\"\ncopy-area.path = \"/c\"",
        ),
        (
            "volume.q",
            "[volume.q]\npath = \"/q\"\nfreeze = \"reflink\"\nsnapshot-size = \"1G\"",
        ),
        ("volume.q", "[volume.q]\npath = \"/q\"\nsnapshot-size = \"101%\""),
        (
            "tls-dir",
            "[volume.q]\npath = \"/q\"\nallow = [\"proxy.example\"]",
        ),
        ("listen.tcp", "[listen]\ntcp = [\"0.0.0.0:0\"]"),
        (
            "insecure-plaintext",
            "[listen]\ntls-dir = \"/pki\"\ninsecure-plaintext = true",
        ),
        (
            "origin o",
            "[origin.o]\npath = \"/o\"\ncopy-area.path = \"/a\"\n[listen]\ntcp = [\"127.0.0.1:0\"]",
        ),
    ] {
        let text = match more {
            "!" => String::new(),
            more => format!("{volume}{more}"),
        };
        let told = why(&text);
        assert!(told.contains(names), "{text}\n{told}");
    }
}

#[test]
fn whom_nobody_chose_can_have_nothing_frozen() {
    let volume = |allow: &str| format!("[volume.vm]\npath = \"/v\"\nfreeze-on-request = true\n{allow}\n");
    let listeners = "[listen]\nsocket = [\"/run/s\"]\ntcp = [\"127.0.0.1:0\"]\n";
    let told = why(&format!("{}{listeners}", volume("")));
    assert!(
        told.contains("freeze-on-request of vm") && told.contains("127.0.0.1"),
        "{told}"
    );
    // Of a set, each of its volumes has the list.
    let set = |allow: &str| format!("[set.s]\nvolume.v.path = \"/v\"\nfreeze-on-request = true\n{allow}\n");
    let told = why(&format!("{}{listeners}", set("")));
    assert!(told.contains("freeze-on-request of s"), "{told}");
    // Of a set with origins, these too, which have lists of their own.
    let with_origins = |set: &str, of_a: &str, of_b: &str| {
        let origin = |name: &str, allow: &str| {
            format!("[origin.{name}]\npath = \"/{name}\"\ncopy-area.path = \"/{name}.old\"\n{allow}\n")
        };
        let set = format!("[set.s]\norigins = [\"a\", \"b\"]\nfreeze-on-request = true\n{set}\n");
        format!("{set}{}{}{listeners}", origin("a", of_a), origin("b", of_b))
    };
    let list = "allow = [\"127.0.0.1\"]";
    let volume_with_list = format!("volume.v.path = \"/v\"\n{list}");
    for (unlisted, bad) in [
        ("a", with_origins("", "", "")),
        ("a", with_origins("", "", list)),
        ("b", with_origins("", list, "")),
        ("b", with_origins(&volume_with_list, list, "")),
        ("v", with_origins("volume.v.path = \"/v\"", list, list)),
    ] {
        let told = why(&bad);
        let words = [
            "freeze-on-request of s",
            &format!("give {unlisted} an allow list"),
        ];
        assert!(words.iter().all(|words| told.contains(words)), "{bad}\n{told}");
    }
    for good in [
        with_origins("", list, list),
        with_origins(&volume_with_list, list, list),
        format!("{}{listeners}", set("allow = [\"127.0.0.1\"]")),
        format!("{}{listeners}", volume("allow = [\"127.0.0.1\"]")),
        format!("{}{listeners}tls-dir = \"/pki\"", volume("")),
        format!("{}[listen]\nsocket = [\"/run/s\"]", volume("")),
        volume(""),
    ] {
        assert!(parsed(&good).is_ok(), "{good}");
    }
}
