//! Frozen images that clients have made.

use super::{ALL, Volume, kind, name, thaw_expired};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use crate::config::OnRequest;
use crate::error::ErrorKind;
use crate::host::Host;
use crate::proto::handshake::Refusal;
use crate::server::{AllowLists, Client, Exports, Found};
use volmap::frozen::FrozenImage;

fn host(rules: OnRequest, access: AllowLists) -> (Arc<Host>, Arc<Volume>) {
    let names = vec![name("vm")];
    let host = Host::new()
        .with_access(access)
        .freezing_on_request(OnRequest { names, ..rules });
    let volume = Arc::new(Volume::default());
    host.add(&name("vm"), volume.clone()).unwrap();
    host.add(&name("other"), Arc::new(Volume::default())).unwrap();
    (Arc::new(host), volume)
}

fn at_once() -> OnRequest {
    OnRequest {
        every: Duration::ZERO,
        ..OnRequest::default()
    }
}

fn refusal(made: Result<Found, Refusal>) -> Refusal {
    made.map(|found| found.name).unwrap_err()
}

fn is_not_now(made: Result<Found, Refusal>) -> bool {
    matches!(refusal(made), Refusal::NotNow(_))
}

#[test]
fn whoever_enters_gets_a_frozen_image_of_its_own() {
    let (host, _) = host(at_once(), AllowLists::default());
    assert!(host.makes("vm@new", &ALL));
    for never in [
        "other@new",
        "vm",
        "vm@1",
        "new",
        "@new",
        "vm@new@new",
        "vm@new.tag",
        "",
    ] {
        assert!(!host.makes(never, &ALL), "{never}");
        assert_eq!(refusal(host.make(never, &ALL)), Refusal::Unknown, "{never}");
    }
    assert!(host.offers(&ALL).is_empty() && host.open("vm@new", &ALL).is_none());
    let one = host.make("vm@new", &ALL).unwrap();
    let two = host.make("vm@new", &ALL).unwrap();
    assert!(one.made && one.name.starts_with("vm@") && one.name != two.name);
    let by_name = host.open(&one.name, &ALL).unwrap();
    assert!(!by_name.made && Arc::ptr_eq(&by_name.export, &one.export));
    assert_eq!(
        host.offers(&ALL).len(),
        2,
        "what was made is listed, what may be made is not"
    );
    assert_eq!(kind(host.freeze("vm", Some("new"))), ErrorKind::Usage);
}

#[test]
fn a_volume_has_no_more_of_them_than_it_may_and_not_too_often() {
    let (first, _) = host(at_once(), AllowLists::default());
    let one = first.make("vm@new", &ALL).unwrap();
    first.freeze("vm", None).unwrap();
    first.make("vm@new", &ALL).unwrap();
    assert!(is_not_now(first.make("vm@new", &ALL)), "two at a time");
    first.thaw(&one.name).unwrap();
    first.make("vm@new", &ALL).unwrap();
    let (second, volume) = host(OnRequest::default(), AllowLists::default());
    volume.refuses.store(true, Ordering::SeqCst);
    assert!(matches!(refusal(second.make("vm@new", &ALL)), Refusal::Failed(_)));
    assert!(
        is_not_now(second.make("vm@new", &ALL)),
        "one that failed counts, too"
    );
}

#[test]
fn a_freeze_that_failed_takes_no_place() {
    let (host, volume) = host(at_once(), AllowLists::default());
    volume.refuses.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        let Refusal::Failed(text) = refusal(host.make("vm@new", &ALL)) else {
            panic!("it said no");
        };
        // What exactly failed is told to the host's operator alone.
        assert_eq!(
            text.as_str(),
            "vm could not be frozen: the log of the agent says why"
        );
    }
    volume.refuses.store(false, Ordering::SeqCst);
    host.make("vm@new", &ALL).unwrap();
}

#[test]
fn who_may_not_have_a_volume_has_nothing_frozen() {
    let mut access = AllowLists::default();
    access.allow("vm", ["10.0.0.1".parse().unwrap()]);
    let (host, _) = host(at_once(), access);
    let from = |address: [u8; 4]| Client {
        address: Some(IpAddr::from(address)),
        ..ALL
    };
    for stranger in [ALL, from([10, 0, 0, 2])] {
        assert!(!host.makes("vm@new", &stranger));
        assert_eq!(refusal(host.make("vm@new", &stranger)), Refusal::Unknown);
    }
    assert!(host.list().volumes.iter().all(|volume| volume.frozen.is_empty()));
    assert!(host.make("vm@new", &from([10, 0, 0, 1])).is_ok());
}

#[test]
fn what_is_read_is_kept_and_what_nobody_reads_ends_after_its_time() {
    let (host, _) = host(soon(), AllowLists::default());
    let found = host.make("vm@new", &ALL).unwrap();
    let name = found.name.clone();
    assert!(is_there_after(&host, &name, 2), "a connection has it");
    drop(found);
    assert!(!is_there_after(&host, &name, 1), "nobody has it");
    assert!(host.make("vm@new", &ALL).is_ok());
}

/// Whether it is there after so many looks at what is read and what has run out, each after twice its hold.
fn is_there_after(host: &Arc<Host>, name: &str, looks: usize) -> bool {
    for _ in 0..looks {
        std::thread::sleep(Duration::from_millis(100));
        host.keep_what_is_read();
        thaw_expired(host);
    }
    host.open(name, &ALL).is_some()
}

fn soon() -> OnRequest {
    OnRequest {
        hold: Duration::from_millis(50),
        ..at_once()
    }
}

#[test]
fn whoever_reads_without_end_keeps_nothing_longer_than_the_longest_time() {
    let rules = OnRequest {
        longest: Duration::from_secs(3),
        ..soon()
    };
    let (host, _) = host(rules, AllowLists::default());
    let found = host.make("vm@new", &ALL).unwrap();
    assert!(is_there_after(&host, &found.name, 2));
    assert!(!is_there_after(&host, &found.name, 30), "though it is read");
    let longer_than_that = OnRequest {
        hold: Duration::from_secs(900),
        longest: Duration::from_millis(50),
        ..at_once()
    };
    let (host, _) = self::host(longer_than_that, AllowLists::default());
    let found = host.make("vm@new", &ALL).unwrap();
    assert!(!is_there_after(&host, &found.name, 1));
}

#[test]
fn what_is_lost_ends_at_once_and_takes_its_place_until_it_has() {
    let rules = OnRequest { most: 1, ..at_once() };
    let (host, volume) = host(rules, AllowLists::default());
    let found = host.make("vm@new", &ALL).unwrap();
    assert!(host.look_for_what_is_gone().is_empty());
    assert!(is_not_now(host.make("vm@new", &ALL)), "it stands");
    let image = Arc::clone(&volume.made.lock().unwrap()[0]);
    image.thaw();
    let (say, word) = mpsc::channel();
    *image.thaw_waits_for.lock().unwrap() = Some(word);
    let thaws = host.look_for_what_is_gone();
    assert_eq!(thaws.len(), 1, "though it is read, and its hold is long");
    while image.thaw_waits_for.lock().unwrap().is_some() {
        std::thread::yield_now();
    }
    assert!(host.open(&found.name, &ALL).is_none());
    let meanwhile = host.make("vm@new", &ALL);
    say.send(()).unwrap();
    assert!(is_not_now(meanwhile), "its snapshot is still there");
    thaws.into_iter().for_each(|thaw| thaw.join().unwrap());
    host.make("vm@new", &ALL).unwrap();
    let there = host
        .list()
        .volumes
        .iter()
        .map(|volume| volume.frozen.len())
        .sum::<usize>();
    assert_eq!(there, 1);
}

#[test]
fn what_an_operator_holds_is_not_cut_short_by_those_who_read() {
    let (host, _) = host(soon(), AllowLists::default());
    let found = host.make("vm@new", &ALL).unwrap();
    host.hold(&found.name, Duration::from_secs(60)).unwrap();
    assert!(is_there_after(&host, &found.name, 1));
    let name = found.name.clone();
    drop(found);
    assert!(is_there_after(&host, &name, 1));
}

#[test]
fn who_lists_is_no_reader() {
    let (host, volume) = host(soon(), AllowLists::default());
    let name = host.make("vm@new", &ALL).unwrap().name;
    let (say, word) = mpsc::channel();
    *volume.size_waits_for.lock().unwrap() = Some(word);
    let is_there = std::thread::scope(|scope| {
        let listing = scope.spawn(|| host.list());
        while volume.size_waits_for.lock().unwrap().is_some() {
            std::thread::yield_now();
        }
        let is_there = is_there_after(&host, &name, 1);
        say.send(()).unwrap();
        listing.join().unwrap();
        is_there
    });
    assert!(!is_there);
}

#[test]
fn what_nobody_was_told_of_ends_at_once() {
    let rules = OnRequest { most: 1, ..at_once() };
    let (host, _) = host(rules, AllowLists::default());
    let made = host.make("vm@new", &ALL).unwrap();
    host.unmake(&made.name);
    assert!(host.open(&made.name, &ALL).is_none());
    assert!(host.make("vm@new", &ALL).is_ok(), "it takes no place");
    host.unmake(&made.name);
}
