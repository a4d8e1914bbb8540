//! The registry and its control socket, with volumes whose freezes are scripted.

mod lineage;
mod on_request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use volmap::frozen::FrozenImage;

use super::control::{Reply, Request, ask, serve};
use super::{Around, Host, Source, State, VolumeKind};
use crate::config::VolumeName;
use crate::error::{Error, ErrorKind};
use crate::export::scripted::Scripted;
use crate::server::{Audience, Client, Exports, UnixSocket};

/// A volume whose freeze, or whose answer for its size, waits for a word where it is told to.
#[derive(Default)]
struct Volume {
    refuses: AtomicBool,
    freeze_waits_for: std::sync::Mutex<Option<mpsc::Receiver<()>>>,
    size_waits_for: std::sync::Mutex<Option<mpsc::Receiver<()>>>,
    made: std::sync::Mutex<Vec<Arc<Scripted>>>,
}

impl Source for Volume {
    fn kind(&self) -> VolumeKind {
        VolumeKind::Volume
    }

    fn path(&self) -> String {
        "/scripted".into()
    }

    fn size(&self) -> Result<u64, Error> {
        let word = self.size_waits_for.lock().unwrap().take();
        if let Some(word) = word {
            word.recv().unwrap();
        }
        Ok(4 << 20)
    }

    fn rotates(&self) -> bool {
        true
    }

    fn freeze(&self, _around: &mut Around<'_>) -> Result<Arc<dyn FrozenImage>, Error> {
        let word = self.freeze_waits_for.lock().unwrap().take();
        if let Some(word) = word {
            word.recv().unwrap();
        }
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Freeze, "no"));
        }
        let image = Scripted::with_holes();
        self.made.lock().unwrap().push(Arc::clone(&image));
        Ok(image)
    }
}

/// More than a scripted volume takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(20);

const ALL: Client = Client {
    audience: Audience { writable: true },
    address: None,
    names: Vec::new(),
};

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn host() -> (Arc<Host>, Arc<Volume>) {
    let host = Host::new();
    let volume = Arc::new(Volume::default());
    host.add(&name("vm"), volume.clone()).unwrap();
    (Arc::new(host), volume)
}

fn kind<T>(outcome: Result<T, Error>) -> ErrorKind {
    match outcome {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.kind(),
    }
}

#[test]
fn a_volume_is_exported_once_it_is_frozen() {
    let (host, _) = host();
    assert!(host.open("vm", &ALL).is_none());
    assert!(host.open("", &ALL).is_none());
    host.freeze_at_start(&name("vm")).unwrap();
    assert!(host.open("vm", &ALL).is_some());
    let sole = host.open("", &ALL).expect("the empty name is the sole export");
    assert_eq!(sole.name, "vm");
    assert!(sole.rotational, "as the disk of its volume");
    let report = host.freeze("vm", Some("monday")).unwrap().remove(0);
    assert_eq!(report.export, "vm@monday");
    assert!(host.open("vm@monday", &ALL).unwrap().rotational);
    assert!(host.open("", &ALL).is_none(), "there are two now");
    assert_eq!(host.offers(&ALL).len(), 2);
}

/// Thaws what is held no longer, to its end.
fn thaw_expired(host: &Arc<Host>) {
    let thaws = host.thaw_what_is_held_no_longer();
    thaws.into_iter().for_each(|thaw| thaw.join().unwrap());
}

#[test]
fn a_thaw_that_hangs_keeps_no_other_hold_from_running_out() {
    let (host, volume) = host();
    for id in ["a", "b"] {
        host.freeze_for("vm", Some(id), Some(Duration::ZERO)).unwrap();
    }
    let (say, word) = mpsc::channel();
    *volume.made.lock().unwrap()[0].thaw_waits_for.lock().unwrap() = Some(word);
    std::thread::scope(|scope| {
        scope.spawn(|| thaw_expired(&host));
        let deadline = Instant::now() + PATIENCE;
        let is_there = |name| host.open(name, &ALL).is_some();
        while (is_there("vm@a") || is_there("vm@b")) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let stays = is_there("vm@b");
        say.send(()).unwrap();
        assert!(!stays, "the first one hangs");
    });
}

#[test]
fn names_are_checked_and_unique() {
    let (host, _) = host();
    assert_eq!(kind(host.freeze("other", None)), ErrorKind::UnknownName);
    assert_eq!(kind(host.freeze("vm", Some("a b"))), ErrorKind::Usage);
    assert_eq!(kind(host.freeze("vm", Some(""))), ErrorKind::Usage);
    host.freeze("vm", Some("a")).unwrap();
    assert_eq!(kind(host.freeze("vm", Some("a"))), ErrorKind::NameTaken);
    host.freeze("vm", None).unwrap();
    host.freeze("vm", None).unwrap();
    assert_eq!(host.list().volumes[0].frozen.len(), 3);
    assert_eq!(
        kind(host.add(&name("vm"), Arc::new(Volume::default()))),
        ErrorKind::NameTaken
    );
}

#[test]
fn a_thawed_image_is_gone_and_its_name_is_free() {
    let (host, _) = host();
    let first = host.freeze("vm", Some("a")).unwrap().remove(0);
    let held = host.open("vm@a", &ALL).unwrap().export;
    host.thaw("vm@a").unwrap();
    assert!(host.open("vm@a", &ALL).is_none());
    assert!(held.cache(volmap::range::ByteRange::new(0, 1).unwrap()).is_err());
    assert_eq!(kind(host.thaw("vm@a")), ErrorKind::UnknownName);
    assert_eq!(host.freeze("vm", Some("a")).unwrap()[0].export, first.export);
}

#[test]
fn a_name_is_held_while_its_freeze_lasts() {
    let (host, volume) = host();
    let (say, word) = mpsc::channel();
    *volume.freeze_waits_for.lock().unwrap() = Some(word);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| host.freeze("vm", Some("a")));
        while volume.freeze_waits_for.lock().unwrap().is_some() {
            std::thread::yield_now();
        }
        assert_eq!(kind(host.freeze("vm", Some("a"))), ErrorKind::NameTaken);
        assert!(host.freeze("vm", Some("b")).is_ok(), "others are not held up");
        say.send(()).unwrap();
        assert!(slow.join().unwrap().is_ok());
    });
    volume.refuses.store(true, Ordering::SeqCst);
    assert_eq!(kind(host.freeze("vm", Some("c"))), ErrorKind::Freeze);
    volume.refuses.store(false, Ordering::SeqCst);
    assert!(
        host.freeze("vm", Some("c")).is_ok(),
        "a failed freeze gives its name back"
    );
}

#[test]
fn a_closed_host_has_thawed_all() {
    let (host, volume) = host();
    host.freeze("vm", Some("a")).unwrap();
    let held = host.open("vm@a", &ALL).unwrap().export;
    let (say, word) = mpsc::channel();
    *volume.freeze_waits_for.lock().unwrap() = Some(word);
    std::thread::scope(|scope| {
        let late = scope.spawn(|| host.freeze("vm", Some("b")));
        while volume.freeze_waits_for.lock().unwrap().is_some() {
            std::thread::yield_now();
        }
        let closing = scope.spawn(|| host.close_within(PATIENCE));
        while !host.offers(&ALL).is_empty() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(50));
        let waits = !closing.is_finished();
        say.send(()).unwrap();
        assert!(
            waits,
            "a freeze that the end of the process would cut off is waited for"
        );
        assert_eq!(kind(late.join().unwrap()), ErrorKind::System);
        closing.join().unwrap();
    });
    assert!(held.cache(volmap::range::ByteRange::new(0, 1).unwrap()).is_err());
    assert!(host.offers(&ALL).is_empty());
    assert_eq!(kind(host.freeze("vm", Some("c"))), ErrorKind::System);
}

#[test]
fn a_freeze_that_hangs_does_not_keep_the_process() {
    let (host, volume) = host();
    let (say, word) = mpsc::channel();
    *volume.freeze_waits_for.lock().unwrap() = Some(word);
    std::thread::scope(|scope| {
        scope.spawn(|| host.freeze("vm", Some("a")));
        while volume.freeze_waits_for.lock().unwrap().is_some() {
            std::thread::yield_now();
        }
        host.close_within(Duration::from_millis(10));
        say.send(()).unwrap();
    });
}

#[test]
fn a_volume_that_does_not_answer_holds_up_nobody_else() {
    let (host, volume) = host();
    host.freeze("vm", Some("a")).unwrap();
    let (say, word) = mpsc::channel();
    *volume.size_waits_for.lock().unwrap() = Some(word);
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| host.list());
        while volume.size_waits_for.lock().unwrap().is_some() {
            std::thread::yield_now();
        }
        let (done, finished) = mpsc::channel();
        let host = &host;
        scope.spawn(move || {
            host.freeze("vm", Some("b")).unwrap();
            host.open("vm@b", &ALL).unwrap();
            host.thaw("vm@a").unwrap();
            done.send(()).unwrap();
        });
        let others = finished.recv_timeout(PATIENCE);
        say.send(()).unwrap();
        listing.join().unwrap();
        others.expect("a listing that waits for a volume must not hold the registry");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn control_round_trip() {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let (host, _) = host();
    let serving = tokio::spawn(serve(UnixSocket::bind(&path).unwrap(), host));
    let asked = path.clone();
    tokio::task::spawn_blocking(move || {
        let freeze = Request::Freeze {
            hold_seconds: None,
            name: "vm".into(),
            id: Some("a".into()),
        };
        let Ok(Reply::Frozen(report)) = ask(&asked, &freeze) else {
            panic!("frozen");
        };
        assert_eq!((report.export.as_str(), report.state), ("vm@a", State::Good));
        assert_eq!(kind(ask(&asked, &freeze)), ErrorKind::NameTaken);
        let Ok(Reply::Listing(listing)) = ask(&asked, &Request::List) else {
            panic!("listing");
        };
        assert_eq!(listing.volumes[0].frozen, [report]);
        let thaw = Request::Thaw {
            export: "vm@a".into(),
            drop: false,
        };
        assert!(matches!(ask(&asked, &thaw), Ok(Reply::Thawed { .. })));
        assert_eq!(kind(ask(&asked, &thaw)), ErrorKind::UnknownName);
    })
    .await
    .unwrap();
    serving.abort();
    let asked = path.clone();
    let _ = serving.await;
    assert_eq!(kind(ask(&asked, &Request::List)), ErrorKind::Control);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_none_is_answered_and_an_endless_one_ended() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let dir: TempDir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let serving = tokio::spawn(serve(UnixSocket::bind(&path).unwrap(), host().0));
    let long = vec![b'x'; 1 << 20];
    for junk in [&b"{\"verb\":\"explode\"}\n"[..], b"\n", b"\xff\xfe\n", &long] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        // The agent may have answered and closed before all of it is sent.
        let _ = stream.write_all(junk).await;
        let _ = stream.shutdown().await;
        let mut answer = String::new();
        // A reset is an end too, for what was too long.
        if stream.read_to_string(&mut answer).await.is_ok() && !answer.is_empty() {
            assert!(answer.contains("\"kind\":\"control\""), "{answer}");
        }
    }
    serving.abort();
}
