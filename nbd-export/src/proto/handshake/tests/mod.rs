//! Both handshakes back to back in memory, and each against peers that misbehave.

mod evil;
mod pair;
mod server;
mod tls;

use bytes::BytesMut;

use super::{
    Catalogue, ClientHandshake, ClientProgress, Entry, Goal, Outcome, Progress, Refusal, ServerHandshake,
};
use crate::proto::constants::{OptionCode, OptionReplyCode};
use crate::proto::context::ContextName;
use crate::proto::error::ProtocolError;
use crate::proto::flags::TransmissionFlags;
use crate::proto::info::{BlockSizes, ExportInfo};
use crate::proto::option::{ListedExport, OPTION_REPLY_HEADER_LEN, OptionReplyHeader, encode_option};
use crate::proto::session::{HeaderStyle, Negotiated};
use crate::proto::text::ExportName;

/// A catalogue of one export, `disk`, which is also the default; any name of `n`s is an export too.
struct Shelf;

const ALL_FLAGS: TransmissionFlags = TransmissionFlags::from_wire(0x1fff & !(1 << 9));

impl Catalogue for Shelf {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        Ok(["disk", "other"]
            .map(|name| ListedExport {
                name: ExportName::new(name).unwrap(),
                description: format!("the {name}"),
            })
            .into())
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, Refusal> {
        match name {
            "gone" => Err(Refusal::Shutdown),
            "secret" => Err(Refusal::Policy),
            "new" => Err(Refusal::OnEntry),
            "" | "disk" => Ok(()),
            name if name.bytes().all(|byte| byte == b'n') => Ok(()),
            _ => Err(Refusal::Unknown),
        }?;
        Ok(ExportInfo {
            name: ExportName::new("disk").unwrap(),
            size: 1 << 40,
            flags: ALL_FLAGS,
            block: BlockSizes {
                minimum: 512,
                preferred: 4096,
                maximum: 1 << 20,
            },
            description: "a disk".to_owned(),
        })
    }

    fn enter(&self, name: &str) -> Result<Entry, Refusal> {
        match name {
            "new" => Ok(Entry::Awaited),
            name => self.describe(name).map(Entry::Ready),
        }
    }

    fn contexts(&self, name: &str, style: HeaderStyle) -> Result<Vec<ContextName>, Refusal> {
        if name == "new" {
            return Ok(vec![context("base:allocation")]);
        }
        self.describe(name)?;
        let mut names = vec!["base:allocation"];
        if style == HeaderStyle::Extended {
            names.extend(["x-volmap:generation", "x-volmap:disk:id:a", "x-volmap:disk:id:b"]);
        }
        Ok(names.into_iter().map(context).collect())
    }
}

fn context(name: &str) -> ContextName {
    ContextName::new(name).unwrap()
}

fn name(name: &str) -> ExportName {
    ExportName::new(name).unwrap()
}

fn enter(export: &str, contexts: &[&str]) -> Goal {
    Goal::Transmission {
        export: name(export),
        contexts: contexts.iter().copied().map(context).collect(),
    }
}

/// Runs both machines until the client is done; what each says at its end.
fn run_pair(goal: Goal, highest: HeaderStyle) -> (Result<Outcome, ProtocolError>, Option<Negotiated>) {
    let mut to_client = BytesMut::new();
    let server = ServerHandshake::start(&mut to_client);
    run_machines(ClientHandshake::new(goal, highest), server, to_client)
}

/// The same with two machines that were told more.
fn run_machines(
    mut client: ClientHandshake,
    mut server: ServerHandshake,
    mut to_client: BytesMut,
) -> (Result<Outcome, ProtocolError>, Option<Negotiated>) {
    let mut to_server = BytesMut::new();
    let mut entered = None;
    for _ in 0..100 {
        let outcome = match client.advance(&mut to_client, &mut to_server) {
            Ok(ClientProgress::NeedInput) => None,
            // What follows is taken to be inside.
            Ok(ClientProgress::StartTls) => client.secured(&mut to_server).err().map(Err),
            Ok(ClientProgress::Done(outcome)) => Some(Ok(outcome)),
            Err(error) => Some(Err(error)),
        };
        if outcome.is_none() {
            assert!(!to_server.is_empty(), "the client waits and has said nothing");
        }
        loop {
            match server.advance(&mut to_server, &mut to_client, &Shelf).unwrap() {
                Progress::Continue => {}
                Progress::NeedInput | Progress::Closed => break,
                Progress::StartTls => server.secured(),
                Progress::Awaited(_) => {
                    if let Progress::Transmission(session) =
                        server.made(Shelf.describe("disk"), &mut to_client)
                    {
                        entered = Some(*session);
                    }
                    break;
                }
                Progress::Transmission(session) => {
                    entered = Some(*session);
                    break;
                }
            }
        }
        if let Some(outcome) = outcome {
            return (outcome, entered);
        }
    }
    panic!("the handshake does not end");
}

/// What a server says to a client whose bytes are given, after its greeting.
struct Answers {
    replies: Vec<(OptionCode, OptionReplyCode, Vec<u8>)>,
    end: Result<Progress, ProtocolError>,
    raw: BytesMut,
}

/// Feeds a server with client flags and options, in pieces of `piece` bytes.
fn ask(client: &[u8], piece: usize) -> Answers {
    let mut raw = BytesMut::new();
    let mut server = ServerHandshake::start(&mut raw);
    assert_eq!(&raw[..], b"NBDMAGICIHAVEOPT\0\x03");
    ask_server(&mut server, client, piece)
}

/// The same with a server that has been spoken to.
fn ask_server(server: &mut ServerHandshake, client: &[u8], piece: usize) -> Answers {
    let mut raw = BytesMut::new();
    let mut input = BytesMut::new();
    let mut end = Ok(Progress::NeedInput);
    for piece in client.chunks(piece) {
        input.extend_from_slice(piece);
        end = loop {
            match server.advance(&mut input, &mut raw, &Shelf) {
                Ok(Progress::Continue) => {}
                end => break end,
            }
        };
        if end != Ok(Progress::NeedInput) {
            break;
        }
    }
    let mut replies = Vec::new();
    let mut rest = &raw[..];
    while let Ok(Some(header)) = OptionReplyHeader::decode(rest) {
        let whole = OPTION_REPLY_HEADER_LEN + header.length as usize;
        replies.push((
            header.option,
            header.reply,
            rest[OPTION_REPLY_HEADER_LEN..whole].to_vec(),
        ));
        rest = &rest[whole..];
    }
    Answers { replies, end, raw }
}

fn options(flags: u32, options: &[(OptionCode, &[u8])]) -> BytesMut {
    let mut out = BytesMut::from(&flags.to_be_bytes()[..]);
    for (option, data) in options {
        encode_option(*option, data, &mut out);
    }
    out
}
