//! The client against a server that is scripted message by message.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nbd_export::proto::context::{ContextName, SelectedContext};
use nbd_export::proto::handshake::Outcome;
use nbd_export::proto::info::ExportInfo;
use nbd_export::proto::transmission::{Incoming, ReplyEncoder, RequestDecoder};
use nbd_export::proto::{
    BlockSizes, Command, ContextId, Cookie, Errno, ErrorText, ExportName, HeaderStyle, Negotiated,
    PeerMisbehaved, ProtocolError, ReplyTo, TransmissionFlags,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use volmap::range::ByteRange;

use super::buffers::BufferPool;
use super::connection::Connection;
use super::dial::Dialled;
use super::error::NbdError;
use super::limits::Deadlines;

const SIZE: u64 = 1 << 30;

/// The server's end of a session.
struct Script {
    stream: DuplexStream,
    session: Negotiated,
    decoder: RequestDecoder,
    input: BytesMut,
}

impl Script {
    /// The next request; `None` after a goodbye.
    async fn request(&mut self) -> Option<(ReplyTo, Command)> {
        loop {
            match self.decoder.decode(&mut self.input, &self.session).unwrap() {
                Some(Incoming::Request { reply_to, command }) => return Some((reply_to, command)),
                Some(Incoming::Refused { rule, .. }) => panic!("{rule}"),
                Some(Incoming::Disconnect) => return None,
                None => {
                    let read = self.stream.read_buf(&mut self.input).await.unwrap();
                    assert_ne!(read, 0, "closed without a goodbye");
                }
            }
        }
    }

    async fn reply(&mut self, encode: impl FnOnce(ReplyEncoder, &mut BytesMut)) {
        let mut out = BytesMut::new();
        encode(ReplyEncoder::new(&self.session), &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn data(&mut self, to: ReplyTo, byte: u8, length: u32) {
        self.reply(|encoder, out| {
            encoder.data(to, to.offset, length, true, out);
            out.resize(out.len() + length as usize, byte);
        })
        .await;
    }

    async fn error(&mut self, to: ReplyTo, errno: Errno) {
        self.reply(|encoder, out| encoder.error(to, errno, &ErrorText::new("because"), out))
            .await;
    }
}

/// Both ends of a session, with `pipe` bytes on their way at most.
fn session(pipe: usize, request: Duration) -> (Connection, Script) {
    let session = Negotiated {
        requested: ExportName::default(),
        export: ExportInfo {
            name: ExportName::default(),
            size: SIZE,
            flags: TransmissionFlags::HAS_FLAGS
                | TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::BLOCK_STATUS_PAYLOAD,
            block: BlockSizes::default(),
            description: String::new(),
        },
        style: HeaderStyle::Extended,
        contexts: vec![SelectedContext {
            id: ContextId(1),
            name: ContextName::new("base:allocation").unwrap(),
        }],
    };
    let (ours, theirs) = duplex(pipe);
    let connection = Connection::start(
        Dialled {
            stream: Box::new(ours),
            input: BytesMut::new(),
            outcome: Outcome::Transmission(Box::new(session.clone())),
        },
        Deadlines {
            request,
            goodbye: Duration::from_secs(1),
            ..Deadlines::default()
        },
        BufferPool::default(),
    );
    let script = Script {
        stream: theirs,
        session,
        decoder: RequestDecoder::default(),
        input: BytesMut::new(),
    };
    (connection.unwrap(), script)
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let (connection, mut server) = session(1 << 20, LONG);
    let serve = async {
        let mut requests = Vec::new();
        for _ in 0..3 {
            requests.push(server.request().await.unwrap());
        }
        for (to, command) in requests.into_iter().rev() {
            let Command::Read { offset, length, .. } = command else {
                panic!("{command:?}")
            };
            server.data(to, u8::try_from(offset / 512).unwrap(), length).await;
        }
    };
    let read = |n: u64| {
        let connection = &connection;
        async move { connection.read(n * 512, 512).await.unwrap() }
    };
    let (a, b, c, ()) = tokio::join!(read(1), read(2), read(3), serve);
    for (data, byte) in [(a, 1), (b, 2), (c, 3)] {
        assert_eq!(data, Bytes::from(vec![byte; 512]));
    }
}

#[tokio::test]
async fn a_stalled_server_ends_the_session_for_all() {
    let (connection, mut server) = session(1 << 20, Duration::from_millis(50));
    let (first, second) = tokio::join!(connection.read(0, 512), connection.flush());
    assert!(matches!(first, Err(NbdError::Timeout)), "{first:?}");
    assert!(matches!(second, Err(NbdError::Timeout)), "{second:?}");
    // For good: a late answer is nobody's.
    assert!(matches!(connection.flush().await, Err(NbdError::Timeout)));
    assert!(server.request().await.is_some());
}

#[tokio::test]
async fn a_slow_server_is_waited_for() {
    let (connection, mut server) = session(1 << 20, Duration::from_secs(3));
    for _ in 0..4 {
        let serve = async {
            let (to, _) = server.request().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            server.reply(|encoder, out| encoder.success(to, out)).await;
        };
        let (flushed, ()) = tokio::join!(connection.flush(), serve);
        flushed.unwrap();
    }
}

#[tokio::test]
async fn a_broken_rule_ends_the_session_for_all() {
    let (connection, mut server) = session(1 << 20, LONG);
    let serve = async {
        let (to, _) = server.request().await.unwrap();
        server.request().await.unwrap();
        let wrong = ReplyTo {
            cookie: Cookie(4711),
            ..to
        };
        server.reply(|encoder, out| encoder.success(wrong, out)).await;
    };
    let (first, second, ()) = tokio::join!(connection.read(0, 512), connection.flush(), serve);
    let later = connection.flush().await;
    for error in [first.unwrap_err(), second.unwrap_err(), later.unwrap_err()] {
        let NbdError::Protocol(ProtocolError::Misbehaved(rule)) = error else {
            panic!("{error:?}");
        };
        assert_eq!(rule, PeerMisbehaved::UnknownCookie(Cookie(4711)));
    }
}

#[tokio::test]
async fn eshutdown_is_the_last_word() {
    let (connection, mut server) = session(1 << 20, LONG);
    let serve = async {
        let (first, _) = server.request().await.unwrap();
        let (second, _) = server.request().await.unwrap();
        server.error(first, Errno::Shutdown).await;
        server.data(second, 9, 512).await;
        // The polite end.
        assert_eq!(server.request().await, None);
    };
    let (first, second, ()) = tokio::join!(connection.read(0, 512), connection.read(512, 512), serve);
    assert!(first.unwrap_err().is_gone());
    assert_eq!(second.unwrap()[..], [9; 512]);
    assert!(connection.read(0, 512).await.unwrap_err().is_gone());
}

#[tokio::test]
async fn other_errors_keep_the_session() {
    let (connection, mut server) = session(1 << 20, LONG);
    let serve = async {
        let (to, _) = server.request().await.unwrap();
        server.error(to, Errno::Io).await;
        let (to, _) = server.request().await.unwrap();
        server.reply(|encoder, out| encoder.success(to, out)).await;
    };
    let ask = async {
        let NbdError::Server(error) = connection.read(0, 512).await.unwrap_err() else {
            panic!("no error of the server");
        };
        assert_eq!((error.errno, error.text.as_str()), (Errno::Io, "because"));
        connection.flush().await.unwrap();
    };
    tokio::join!(ask, serve);
}

#[tokio::test]
async fn a_closed_connection_is_no_answer() {
    let (connection, mut server) = session(1 << 20, LONG);
    let serve = async {
        let (to, _) = server.request().await.unwrap();
        // Half a reply.
        let mut out = BytesMut::new();
        ReplyEncoder::new(&server.session).data(to, 0, 512, true, &mut out);
        out.resize(out.len() + 511, 7);
        server.stream.write_all(&out).await.unwrap();
        drop(server);
    };
    let (read, ()) = tokio::join!(connection.read(0, 512), serve);
    assert!(matches!(read, Err(NbdError::Closed)), "{read:?}");
    assert!(connection.flush().await.is_err());
}

#[tokio::test]
async fn dropping_and_disconnecting_say_goodbye() {
    let (connection, mut server) = session(1 << 20, LONG);
    drop(connection);
    assert_eq!(server.request().await, None);
    let (connection, mut server) = session(1 << 20, LONG);
    let (_, ended) = tokio::join!(connection.disconnect(), server.request());
    assert_eq!(ended, None);
}

#[tokio::test]
async fn requests_that_do_not_fit_are_not_sent() {
    let (connection, mut server) = session(1 << 20, LONG);
    for unfit in [
        connection.read(SIZE, 1).await.map(|_| ()),
        connection.read(0, u32::MAX).await.map(|_| ()),
        connection.write(0, Bytes::from_static(b"x"), true).await,
        connection.trim(ByteRange::new(0, 512).unwrap()).await,
        connection
            .block_status(ByteRange::new(0, 512).unwrap(), Some(vec![ContextId(7)]))
            .await
            .map(|_| ()),
    ] {
        assert!(matches!(unfit, Err(NbdError::Unfit(_))), "{unfit:?}");
    }
    let (_, ended) = tokio::join!(connection.disconnect(), server.request());
    assert_eq!(ended, None);
}

#[tokio::test]
async fn a_server_that_writes_before_it_reads_is_no_deadlock() {
    // Much less on its way than is in flight.
    let (connection, mut server) = session(100, LONG);
    let serve = async {
        let (to, _) = server.request().await.unwrap();
        server.data(to, 1, 1 << 16).await;
        for _ in 0..99 {
            let (to, _) = server.request().await.unwrap();
            server.data(to, 1, 1 << 16).await;
        }
    };
    let connection = &connection;
    let reads = async {
        let mut tasks = Vec::new();
        for n in 0..100 {
            tasks.push(Box::pin(connection.read(n << 16, 1 << 16)));
        }
        for task in futures_util::future::join_all(tasks).await {
            assert_eq!(task.unwrap().len(), 1 << 16);
        }
    };
    tokio::join!(reads, serve);
}
