//! A whole server on a Unix socket against the client half of `proto`.

mod references;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use volmap::frozen::FrozenImage;
use volmap::range::ByteRange;

use super::limits::{BLOCKING_MAX, BYTES_MAX, HANDSHAKES_MAX, Limits, PATIENCE, ROUNDS};
use super::{Client, Exports, Found, Offer, Server};
use crate::config::Listener;
use crate::export::{
    BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, FrozenExport, Pieces, ReadShape,
    scripted::{MIB, Scripted},
};
use crate::proto::constants::{OptionCode, OptionReplyCode};
use crate::proto::handshake::{ClientHandshake, ClientProgress, Goal, Outcome};
use crate::proto::transmission::client::{ClientTransmission, Completion, ServerError};
use crate::proto::{
    BlockSizes, Command, ContextName, Errno, ExportName, HeaderStyle, ProtocolError, TransmissionFlags,
};

/// One export for everybody, called `e`, and one for those who may write, called `w`.
struct Two {
    everybody: Arc<dyn Export>,
    writers: Arc<dyn Export>,
}

impl Exports for Two {
    fn offers(&self, client: &Client) -> Vec<Offer> {
        let offer = |name: &str, writable| Offer {
            name: name.into(),
            description: String::new(),
            writable,
        };
        [offer("e", false), offer("w", true)]
            .into_iter()
            .filter(|o| client.audience.may_have(o.writable))
            .collect()
    }

    fn open(&self, name: &str, client: &Client) -> Option<Found> {
        match name {
            "e" => Some(Found::of(name, &self.everybody)),
            "w" if client.audience.writable => Some(Found::of(name, &self.writers)),
            _ => None,
        }
    }
}

/// Counts who is in it at a time, and waits before it answers.
struct Slow {
    inside: AtomicUsize,
    most: AtomicUsize,
    wait: Duration,
}

impl Slow {
    fn new(wait: Duration) -> Arc<Self> {
        Arc::new(Self {
            inside: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            wait,
        })
    }
}

impl Export for Slow {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: 1 << 40,
            writable: true,
            fast_zero: false,
            block: BlockSizes::default(),
            description: String::new(),
        }
    }

    fn contexts(&self) -> Vec<Context> {
        Vec::new()
    }

    fn read(&self, range: ByteRange, _: ReadShape, out: &mut Pieces) -> Result<(), ExportError> {
        assert_ne!(range.start(), 4711, "a bug of ours");
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        std::thread::sleep(self.wait);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        out.data(range.start(), usize::try_from(range.len()).unwrap())
            .fill(1);
        Ok(())
    }

    fn block_status(&self, _: ByteRange, _: &[ContextIndex], _: bool) -> Result<BlockStatus, ExportError> {
        Err(ExportError::Unsupported("no contexts"))
    }

    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), ExportError> {
        Ok(())
    }
}

/// Answers nothing until it comes alive.
#[derive(Clone, Default)]
struct Dead {
    begun: Arc<AtomicUsize>,
    alive: Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>,
}

impl Dead {
    fn come_alive(&self) {
        *self.alive.0.lock().unwrap() = true;
        self.alive.1.notify_all();
    }
}

impl Export for Dead {
    fn info(&self) -> ExportInfo {
        Slow::new(Duration::ZERO).info()
    }

    fn contexts(&self) -> Vec<Context> {
        Vec::new()
    }

    fn read(&self, _: ByteRange, _: ReadShape, _: &mut Pieces) -> Result<(), ExportError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let alive = self.alive.0.lock().unwrap();
        let _alive = self.alive.1.wait_while(alive, |alive| !*alive).unwrap();
        Err(ExportError::Unsupported("too late"))
    }

    fn block_status(&self, _: ByteRange, _: &[ContextIndex], _: bool) -> Result<BlockStatus, ExportError> {
        Err(ExportError::Unsupported("no contexts"))
    }

    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
}

struct Running {
    dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<()>,
}

impl Running {
    async fn start(everybody: Arc<dyn Export>, writers: Arc<dyn Export>) -> Self {
        Self::start_within(Limits::default(), everybody, writers).await
    }

    async fn start_within(limits: Limits, everybody: Arc<dyn Export>, writers: Arc<dyn Export>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listeners = [Listener::Unix {
            path: dir.path().join("s"),
            plaintext: false,
        }];
        let server = Server::bind(&listeners, Arc::new(Two { everybody, writers }))
            .await
            .unwrap()
            .within(limits);
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        Self {
            dir,
            stop: Some(stop),
            done,
        }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("s")).await.unwrap()
    }

    async fn session(&self, export: &str, style: HeaderStyle, contexts: &[&str]) -> Session {
        Session::open(self.connect().await, export, style, contexts)
            .await
            .unwrap()
    }

    fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }
}

struct Session {
    stream: UnixStream,
    input: BytesMut,
    output: BytesMut,
    client: ClientTransmission,
}

impl Session {
    async fn open(
        mut stream: UnixStream,
        export: &str,
        style: HeaderStyle,
        contexts: &[&str],
    ) -> Result<Self, Option<ProtocolError>> {
        let goal = Goal::Transmission {
            export: ExportName::new(export).unwrap(),
            contexts: contexts.iter().map(|c| ContextName::new(c).unwrap()).collect(),
        };
        let mut handshake = ClientHandshake::new(goal, style);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        loop {
            let progress = handshake.advance(&mut input, &mut output).map_err(Some)?;
            stream.write_all_buf(&mut output).await.map_err(|_| None)?;
            match progress {
                ClientProgress::NeedInput => {
                    if stream.read_buf(&mut input).await.map_err(|_| None)? == 0 {
                        return Err(None);
                    }
                }
                ClientProgress::Done(Outcome::Transmission(session)) => {
                    return Ok(Self {
                        stream,
                        input,
                        output,
                        client: ClientTransmission::new(*session),
                    });
                }
                ClientProgress::Done(_) | ClientProgress::StartTls => panic!("transmission was the goal"),
            }
        }
    }

    fn submit(&mut self, command: &Command) {
        self.client.submit(command, &mut self.output).unwrap();
    }

    async fn next(&mut self) -> Result<Completion, ServerError> {
        loop {
            self.stream.write_all_buf(&mut self.output).await.unwrap();
            if let Some(finished) = self.client.advance(&mut self.input).unwrap() {
                return finished.result;
            }
            assert_ne!(
                self.stream.read_buf(&mut self.input).await.unwrap(),
                0,
                "server closed"
            );
        }
    }

    async fn ask(&mut self, command: &Command) -> Result<Completion, ServerError> {
        self.submit(command);
        self.next().await
    }
}

fn read(offset: u64, length: u32) -> Command {
    Command::Read {
        offset,
        length,
        dont_fragment: false,
    }
}

fn unfragmented(offset: u64, length: u32) -> Command {
    Command::Read {
        offset,
        length,
        dont_fragment: true,
    }
}

fn status(offset: u64, length: u64) -> Command {
    Command::BlockStatus {
        offset,
        length,
        req_one: false,
        filter: None,
    }
}

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

#[tokio::test]
async fn the_same_bytes_in_every_style() {
    let image = Scripted::with_holes();
    let mut expected = vec![0; 2 * 1024 * 1024];
    image.read_at(MIB / 2, &mut expected).unwrap();
    let server = Running::start(Arc::new(FrozenExport::new(image)), Slow::new(Duration::ZERO)).await;
    for style in STYLES {
        let mut session = server.session("e", style, &[]).await;
        assert_eq!(session.client.session().style, style);
        let Ok(Completion::Read(reply)) = session.ask(&read(MIB / 2, 2 << 20)).await else {
            panic!("read");
        };
        assert_eq!(reply.data, expected);
        assert_eq!(reply.holes.is_empty(), style == HeaderStyle::Simple);
        if style != HeaderStyle::Simple {
            // In one piece: our client takes no other.
            let Ok(Completion::Read(whole)) = session.ask(&unfragmented(MIB / 2, 2 << 20)).await else {
                panic!("read");
            };
            assert!(whole.data == expected && whole.holes.is_empty());
        }
        assert!(session.ask(&Command::Flush).await.is_ok());
        assert!(session.ask(&read(0, 0)).await.is_ok());
    }
}

#[tokio::test]
async fn the_longest_read_comes_in_one_piece() {
    let slow = Slow::new(Duration::ZERO);
    let server = Running::start(slow.clone(), slow).await;
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let mut session = server.session("e", style, &[]).await;
        let Ok(Completion::Read(reply)) = session.ask(&unfragmented(4096, 32 << 20)).await else {
            panic!("read");
        };
        assert!(reply.data.len() == 32 << 20 && reply.data.iter().all(|byte| *byte == 1));
    }
}

#[tokio::test]
async fn x_volmap_is_offered_under_extended_headers_only() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let names = ["base:allocation", "x-volmap:generation"];
    for (style, count) in [(HeaderStyle::Structured, 1), (HeaderStyle::Extended, 2)] {
        let mut session = server.session("e", style, &names).await;
        let Ok(Completion::Status(answer)) = session.ask(&status(0, 4 * MIB)).await else {
            panic!("status");
        };
        assert_eq!(answer.len(), count);
        assert!(answer.iter().all(|context| context.covered() == 4 * MIB));
    }
}

#[tokio::test]
async fn a_gone_image_is_told_to_every_connection_for_good() {
    let image = Scripted::with_holes();
    let export = Arc::new(FrozenExport::new(image.clone()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let mut before = Vec::new();
    for style in STYLES {
        before.push(server.session("e", style, &["base:allocation"]).await);
    }
    assert!(before[0].ask(&read(0, 512)).await.is_ok());
    image.thaw();
    before.push(
        server
            .session("e", HeaderStyle::Extended, &["base:allocation"])
            .await,
    );
    for session in &mut before {
        for _ in 0..2 {
            assert_eq!(
                session.ask(&read(0, 512)).await.unwrap_err().errno,
                Errno::Shutdown
            );
            // The range reads as zeroes: that is no reason to answer.
            assert_eq!(
                session.ask(&read(MIB, 512)).await.unwrap_err().errno,
                Errno::Shutdown
            );
            // Nor is a request of no bytes a reason to say that all is well.
            let cache = Command::Cache { offset: 0, length: 0 };
            for command in [read(0, 0), Command::Flush, cache] {
                assert_eq!(session.ask(&command).await.unwrap_err().errno, Errno::Shutdown);
            }
            if !session.client.session().contexts.is_empty() {
                assert_eq!(
                    session.ask(&status(0, MIB)).await.unwrap_err().errno,
                    Errno::Shutdown
                );
            }
        }
    }
}

/// CVE-2019-14850: the store behind an export must not be touched for a client that may never enter it.
#[tokio::test]
async fn nothing_behind_an_export_is_asked_before_go() {
    let image = Scripted::with_holes();
    let export = Arc::new(FrozenExport::new(image.clone()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let names = ["base:allocation", "x-volmap:generation"];
    let mut session = server.session("e", HeaderStyle::Extended, &names).await;
    assert_eq!(image.samples(), 0);
    assert!(session.ask(&status(0, MIB)).await.is_ok());
    assert_eq!(image.samples(), 1);
}

#[tokio::test]
async fn a_pipelined_answer_is_never_older_than_its_request() {
    let image = Scripted::with_holes();
    let server = Running::start(
        Arc::new(FrozenExport::new(image.clone())),
        Slow::new(Duration::ZERO),
    )
    .await;
    let mut session = server
        .session("e", HeaderStyle::Extended, &["x-volmap:generation"])
        .await;
    for _ in 0..8 {
        session.submit(&status(0, 4 * MIB));
    }
    for _ in 0..8 {
        assert!(session.next().await.is_ok());
    }
    assert_eq!(image.samples(), 8, "each request samples the state for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_bounded_by_number_and_by_bytes() {
    for (length, count, most) in [
        (1, BLOCKING_MAX * 2, BLOCKING_MAX),
        (32 << 20, 4, BYTES_MAX / (32 << 20)),
    ] {
        let slow = Slow::new(Duration::from_millis(200));
        let server = Running::start(slow.clone(), slow.clone()).await;
        let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
        for _ in 0..count {
            session.submit(&read(0, length));
        }
        for _ in 0..count {
            assert!(session.next().await.is_ok());
        }
        let seen = slow.most.load(Ordering::SeqCst);
        assert!(seen <= most, "{seen} requests of {length} bytes at a time");
        assert!(seen > 1, "requests are served side by side");
    }
}

#[test]
fn a_dead_disk_costs_only_its_own_clients() {
    // More connections than tokio's own limit of 512 threads has room for.
    let connections = 512 / BLOCKING_MAX + 1;
    let dead = Dead::default();
    let runtime = super::runtime(&Limits::default()).unwrap();
    runtime.block_on(async {
        let healthy = Arc::new(FrozenExport::new(Scripted::with_holes()));
        let server = Running::start(healthy, Arc::new(dead.clone())).await;
        let mut stuck = Vec::new();
        for _ in 0..connections {
            let mut session = server.session("w", HeaderStyle::Structured, &[]).await;
            for _ in 0..BLOCKING_MAX {
                session.submit(&read(0, 1));
            }
            session.stream.write_all_buf(&mut session.output).await.unwrap();
            stuck.push(session);
        }
        let mut other = server.session("e", HeaderStyle::Structured, &[]).await;
        let answer = tokio::time::timeout(Duration::from_secs(20), other.ask(&read(0, 512))).await;
        dead.come_alive();
        assert!(answer.expect("another disk answers").is_ok());
    });
}

#[tokio::test]
async fn a_bug_behind_one_request_costs_that_request_only() {
    let slow = Slow::new(Duration::ZERO);
    let server = Running::start(slow.clone(), slow).await;
    let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
    assert_eq!(session.ask(&read(4711, 1)).await.unwrap_err().errno, Errno::Io);
    assert!(session.ask(&read(0, 1)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnect_and_shutdown_finish_what_is_in_flight() {
    let slow = Slow::new(Duration::from_millis(100));
    let mut server = Running::start(slow.clone(), slow.clone()).await;
    let mut leaving = server.session("e", HeaderStyle::Structured, &[]).await;
    leaving.submit(&read(0, 100));
    leaving.client.disconnect(&mut leaving.output);
    assert!(leaving.next().await.is_ok());
    assert_eq!(leaving.stream.read_buf(&mut leaving.input).await.unwrap(), 0);

    let mut busy = server.session("e", HeaderStyle::Structured, &[]).await;
    busy.submit(&read(0, 100));
    busy.stream.write_all_buf(&mut busy.output).await.unwrap();
    let idle = server.connect().await;
    while slow.inside.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.stop();
    assert!(busy.next().await.is_ok());
    tokio::time::timeout(Duration::from_secs(5), server.done)
        .await
        .expect("the server ends")
        .unwrap();
    // Half-open to the end, and not what the server waited for.
    drop(idle);
    assert!(!server.dir.path().join("s").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_at_shutdown_are_told_so_on_every_connection() {
    let dead = Dead::default();
    let mut server = Running::start(Arc::new(dead.clone()), Arc::new(dead.clone())).await;
    let mut sessions = Vec::new();
    for style in STYLES {
        for _ in 0..3 {
            let mut session = server.session("e", style, &[]).await;
            // In flight when the end begins, so that the connection is there until it is answered.
            session.submit(&read(0, 100));
            session.stream.write_all_buf(&mut session.output).await.unwrap();
            sessions.push(session);
        }
    }
    while dead.begun.load(Ordering::SeqCst) < sessions.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.stop();
    let mut in_flight = Vec::new();
    for session in &mut sessions {
        // What is sent before its connection knows of the end is still taken.
        let mut taken = 1;
        loop {
            session.submit(&read(4096, 100));
            session.stream.write_all_buf(&mut session.output).await.unwrap();
            match tokio::time::timeout(Duration::from_millis(100), session.next()).await {
                Ok(answer) => break assert_eq!(answer.unwrap_err().errno, Errno::Shutdown),
                Err(_) => taken += 1,
            }
        }
        in_flight.push(taken);
    }
    dead.come_alive();
    for (session, taken) in sessions.iter_mut().zip(in_flight) {
        for _ in 0..taken {
            assert_ne!(session.next().await.unwrap_err().errno, Errno::Shutdown);
        }
        // Then the end, and not a reset.
        assert_eq!(session.stream.read_buf(&mut session.input).await.unwrap(), 0);
    }
    tokio::time::timeout(Duration::from_secs(5), server.done)
        .await
        .expect("the server ends")
        .unwrap();
}

#[tokio::test]
async fn clients_in_their_handshake_are_told_of_a_shutdown() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let mut server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let early = server.connect().await;
    let mut half_way = server.connect().await;
    half_way.write_all(b"\0\0\0\x03IHAVE").await.unwrap();
    let mut silent = server.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let refused = Session::open(early, "e", HeaderStyle::Extended, &["base:allocation"]).await;
    let Err(Some(ProtocolError::Refused(refused))) = refused else {
        panic!("a refusal in words")
    };
    assert_eq!(refused.reply, OptionReplyCode::ERR_SHUTDOWN);
    half_way.write_all(b"OPT\0\0\0\x03\0\0\0\0").await.unwrap();
    let mut heard = Vec::new();
    half_way.read_to_end(&mut heard).await.unwrap();
    assert_eq!(
        heard[18 + 12..][..4],
        OptionReplyCode::ERR_SHUTDOWN.0.to_be_bytes()
    );
    // Whoever says nothing hears nothing, and holds nobody up.
    let mut heard = Vec::new();
    silent.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard.len(), 18);
    tokio::time::timeout(Duration::from_secs(5), server.done)
        .await
        .expect("the server ends")
        .unwrap();
}

#[tokio::test]
async fn bad_clients_cost_themselves_their_connection() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    for junk in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64], &[0xff; 4096]] {
        let mut stream = server.connect().await;
        stream.write_all(junk).await.unwrap();
        drop(stream);
    }
    let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
    session.stream.write_all(&[0xff; 28]).await.unwrap();
    assert_eq!(session.stream.read_buf(&mut session.input).await.unwrap_or(0), 0);
    let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
    assert!(session.ask(&read(0, 1)).await.is_ok());
}

#[tokio::test]
async fn an_endless_handshake_is_ended() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let mut stream = server.connect().await;
    stream.write_all(&3_u32.to_be_bytes()).await.unwrap();
    let mut option = BytesMut::new();
    option.extend_from_slice(b"IHAVEOPT");
    option.extend_from_slice(&OptionCode::LIST_META_CONTEXT.0.to_be_bytes());
    option.extend_from_slice(&60_000_u32.to_be_bytes());
    option.resize(option.len() + 60_000, 0);
    let option: Bytes = option.freeze();
    let (mut reader, mut writer) = stream.into_split();
    let drain = tokio::spawn(async move {
        let mut all = Vec::new();
        // The server resets the connection: that is an end too.
        let _ = reader.read_to_end(&mut all).await;
        all.len()
    });
    let mut sent = 0;
    while writer.write_all(&option).await.is_ok() {
        sent += option.len();
        assert!(sent < 64 << 20, "the server reads for ever");
    }
    drain.await.unwrap();
}

/// Neither a flag too few nor one too many.
#[tokio::test]
async fn exports_offer_what_they_can_and_nothing_else() {
    let slow = Slow::new(Duration::ZERO);
    let server = Running::start(Arc::new(FrozenExport::new(Scripted::with_holes())), slow).await;
    let always = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::CAN_MULTI_CONN
        | TransmissionFlags::SEND_CACHE;
    let frozen = always | TransmissionFlags::READ_ONLY;
    let live = always
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES;
    for (style, with_contexts, of_style) in [
        (HeaderStyle::Simple, false, TransmissionFlags::NONE),
        (HeaderStyle::Structured, true, TransmissionFlags::SEND_DF),
        (HeaderStyle::Extended, false, TransmissionFlags::SEND_DF),
        (
            HeaderStyle::Extended,
            true,
            TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD,
        ),
    ] {
        let contexts = if with_contexts {
            &["base:allocation"][..]
        } else {
            &[]
        };
        let session = server.session("e", style, contexts).await;
        assert_eq!(
            session.client.session().export.flags,
            frozen | of_style,
            "{style:?}"
        );
        // It has no contexts.
        let session = server.session("w", style, contexts).await;
        let of_style = of_style.without(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        assert_eq!(
            session.client.session().export.flags,
            live | of_style,
            "{style:?}"
        );
    }
    let missing = Session::open(server.connect().await, "x", HeaderStyle::Extended, &[]).await;
    assert!(missing.is_err());
}

#[tokio::test]
async fn a_flood_of_half_open_handshakes_locks_nobody_out() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let mut before = server.session("e", HeaderStyle::Structured, &[]).await;
    let mut crowd = Vec::new();
    for _ in 0..2 * HANDSHAKES_MAX {
        crowd.push(server.connect().await);
        // One of the same process comes through in the midst of it.
        if crowd.len() % 100 == 0 {
            let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
            assert!(session.ask(&read(0, 1)).await.is_ok());
        }
    }
    assert!(before.ask(&read(0, 1)).await.is_ok(), "sessions are not touched");
    // The oldest was let go: after its greeting comes the end.
    let mut greeting = Vec::new();
    let oldest = tokio::time::timeout(Duration::from_secs(5), crowd[0].read_to_end(&mut greeting));
    assert!(oldest.await.expect("its end").is_ok());
}

/// A session on the image with holes, whose status is answered at once, and many requests for it that were not sent.
async fn many_requests(server: &Running, count: usize) -> (Session, Bytes) {
    let mut session = server
        .session("e", HeaderStyle::Structured, &["base:allocation"])
        .await;
    for _ in 0..count {
        session.submit(&status(0, MIB));
    }
    let requests = session.output.split().freeze();
    (session, requests)
}

#[tokio::test]
async fn requests_are_received_no_faster_than_their_replies_are_taken() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let (session, requests) = many_requests(&server, 1000).await;
    let mut sent = 0;
    let endless = async {
        loop {
            session.stream.writable().await.unwrap();
            match session.stream.try_write(&requests[sent % requests.len()..]) {
                Ok(count) => sent += count,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    };
    // The client never reads a reply; what it sends must stay in its own memory, but for what the sockets hold.
    assert!(
        tokio::time::timeout(Duration::from_secs(2), endless)
            .await
            .is_err()
    );
    assert!(sent < 2 << 20, "the server took {sent} bytes");
}

#[tokio::test]
async fn what_was_sent_before_the_end_is_answered() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let (mut session, mut requests) = many_requests(&server, 5000).await;
    session.stream.write_all_buf(&mut requests).await.unwrap();
    session.stream.shutdown().await.unwrap();
    // Long enough for the server to see the end while replies wait.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..5000 {
        assert!(session.next().await.is_ok());
    }
}

#[tokio::test]
async fn threads_that_still_read_keep_the_seat_of_their_connection() {
    let dead = Dead::default();
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let healthy = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let server = Running::start_within(limits, healthy, Arc::new(dead.clone())).await;
    let mut session = server.session("w", HeaderStyle::Structured, &[]).await;
    session.submit(&Command::Flush);
    session.submit(&read(0, 1));
    session.stream.write_all_buf(&mut session.output).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // With a reply unread: the server finds a connection that failed, and not one that ended.
    drop(session);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let next = || async { Session::open(server.connect().await, "e", HeaderStyle::Structured, &[]).await };
    let early = next().await;
    dead.come_alive();
    assert!(early.is_err(), "the disk had not answered yet");
    let again = async { while next().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(5), again)
        .await
        .expect("its seat is free");
}

#[tokio::test]
async fn a_client_that_never_pauses_does_not_put_off_a_shutdown() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let mut server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let mut session = server
        .session("e", HeaderStyle::Structured, &["base:allocation"])
        .await;
    let busy = tokio::spawn(async move {
        loop {
            // Ends in a panic when the server has gone.
            let _ = session.ask(&status(0, MIB)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!busy.is_finished());
    server.stop();
    tokio::time::timeout(Duration::from_secs(5), &mut server.done)
        .await
        .expect("the server ends")
        .unwrap();
}

/// The thread of a busy connection waits for the next request in a system call, and looks up from it every few rounds.
#[tokio::test]
async fn a_client_that_asks_just_in_time_is_told_of_a_shutdown_soon() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let mut server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let mut session = server
        .session("e", HeaderStyle::Structured, &["base:allocation"])
        .await;
    for _ in 0..20 {
        session.ask(&status(0, MIB)).await.unwrap();
    }
    server.stop();
    let mut answered = 0;
    while session.ask(&status(0, MIB)).await.is_ok() {
        answered += 1;
        tokio::time::sleep(PATIENCE / 10).await;
    }
    assert!(answered < 2 * ROUNDS, "{answered} requests");
}

#[tokio::test]
async fn handshakes_end_at_their_deadline() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let limits = Limits {
        handshake_deadline: Duration::from_secs(1),
        ..Limits::default()
    };
    let server = Running::start_within(limits, export, Slow::new(Duration::ZERO)).await;
    let mut stream = server.connect().await;
    let mut option = 3_u32.to_be_bytes().to_vec();
    option.extend_from_slice(b"IHAVEOPT");
    option.extend_from_slice(&OptionCode::GO.0.to_be_bytes());
    option.extend_from_slice(&60_000_u32.to_be_bytes());
    stream.write_all(&option).await.unwrap();
    let slow = async {
        // Never silent for long, and never done.
        while stream.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(90)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), slow)
        .await
        .expect("the server ends it");
    let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        session.ask(&read(0, 1)).await.is_ok(),
        "a session has no deadline"
    );
}

#[tokio::test]
async fn a_client_without_a_seat_is_told_to_come_later() {
    let export = Arc::new(FrozenExport::new(Scripted::with_holes()));
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let server = Running::start_within(limits, export, Slow::new(Duration::ZERO)).await;
    let mut first = server.session("e", HeaderStyle::Structured, &[]).await;
    let second = server.session("e", HeaderStyle::Structured, &[]).await;
    let third = Session::open(server.connect().await, "e", HeaderStyle::Structured, &[]).await;
    let Err(Some(refused)) = third else {
        panic!("a refusal in words")
    };
    assert!(refused.to_string().contains("try again later"), "{refused}");
    drop(second);
    assert!(first.ask(&read(0, 1)).await.is_ok());
    let again = async {
        while Session::open(server.connect().await, "e", HeaderStyle::Structured, &[])
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again)
        .await
        .expect("a seat that was given up is free");
}
