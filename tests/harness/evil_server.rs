//! A server that is honest but for one thing: it shakes hands and answers as it should, until a message that a test has
//! laid its hands on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::{Buf, BytesMut};
use nbd_export::proto::constants::{OptionCode, OptionReplyCode};
use nbd_export::proto::handshake::{Catalogue, Progress, Refusal, ServerHandshake};
use nbd_export::proto::option::ListedExport;
use nbd_export::proto::transmission::{Incoming, ReplyEncoder, RequestDecoder, StatusQuery};
use nbd_export::proto::{
    BlockSizes, Command, ContextName, Descriptor, Errno, ErrorText, ExportInfo, ExportName, HeaderStyle,
    Negotiated, ReplyTo, TransmissionFlags,
};
use nbd_export::uri::NbdUri;
use tempfile::TempDir;

/// What goes out in the place of an honest message.
pub enum Act {
    /// These bytes.
    Say(Vec<u8>),
    /// These bytes again and again, until the client hangs up.
    SayForEver(Vec<u8>),
    /// Nothing, and nothing after it.
    FallSilent,
    /// These bytes, and then the connection is closed.
    SayAndLeave(Vec<u8>),
}

type OptionAct = Box<dyn Fn(&[u8]) -> Act + Send + Sync>;
type ReplyAct = Box<dyn Fn(&Answer<'_>) -> Option<Act> + Send + Sync>;

/// A request, and what an honest server says to it.
pub struct Answer<'a> {
    /// The request.
    pub command: &'a Command,
    /// What replies repeat.
    pub to: ReplyTo,
    /// The honest reply.
    pub honest: &'a [u8],
    /// The session.
    pub session: &'a Negotiated,
}

impl Answer<'_> {
    /// A chunk in the style of the session, well framed.
    pub fn chunk(&self, done: bool, code: u16, payload: &[u8]) -> Vec<u8> {
        self.lying_chunk(done, code, payload.len() as u64, payload)
    }

    /// A chunk whose length is a lie.
    pub fn lying_chunk(&self, done: bool, code: u16, length: u64, payload: &[u8]) -> Vec<u8> {
        let extended = self.session.style == HeaderStyle::Extended;
        let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
        let mut out = magic.to_be_bytes().to_vec();
        out.extend(u16::from(done).to_be_bytes());
        out.extend(code.to_be_bytes());
        out.extend(self.to.cookie.0.to_be_bytes());
        if extended {
            out.extend(self.to.offset.to_be_bytes());
            out.extend(length.to_be_bytes());
        } else {
            out.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        out.extend(payload);
        out
    }

    /// Content at an offset.
    pub fn data(&self, done: bool, offset: u64, bytes: &[u8]) -> Vec<u8> {
        self.chunk(done, 1, &[&offset.to_be_bytes()[..], bytes].concat())
    }

    /// A simple reply.
    pub fn simple(&self, error: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = 0x6744_6698_u32.to_be_bytes().to_vec();
        out.extend(error.to_be_bytes());
        out.extend(self.to.cookie.0.to_be_bytes());
        out.extend(payload);
        out
    }

    /// Status of a context, with these lengths and statuses.
    pub fn status(&self, done: bool, id: u32, extents: &[(u64, u64)]) -> Vec<u8> {
        let extended = self.session.style == HeaderStyle::Extended;
        let mut payload = id.to_be_bytes().to_vec();
        if extended {
            payload.extend(u32::try_from(extents.len()).unwrap().to_be_bytes());
        }
        for (length, status) in extents {
            for number in [length, status] {
                if extended {
                    payload.extend(number.to_be_bytes());
                } else {
                    payload.extend(u32::try_from(*number).unwrap().to_be_bytes());
                }
            }
        }
        self.chunk(done, if extended { 6 } else { 5 }, &payload)
    }

    /// Offset and length of a READ.
    pub fn read(&self) -> Option<(u64, u64)> {
        match self.command {
            Command::Read { offset, length, .. } => Some((*offset, u64::from(*length))),
            _ => None,
        }
    }

    /// Offset and length of a BLOCK_STATUS.
    pub fn query(&self) -> Option<(u64, u64)> {
        match self.command {
            Command::BlockStatus { offset, length, .. } => Some((*offset, *length)),
            _ => None,
        }
    }
}

/// What a server is, and what it does wrong.
pub struct Script {
    style: HeaderStyle,
    greeting: Option<Vec<u8>>,
    option: Option<(OptionCode, OptionAct)>,
    reply: Option<ReplyAct>,
    cut: usize,
    piece: usize,
}

impl Script {
    /// An honest server that knows headers up to this style.
    pub fn honest(style: HeaderStyle) -> Self {
        Self {
            style,
            greeting: None,
            option: None,
            reply: None,
            cut: usize::MAX,
            piece: usize::MAX,
        }
    }

    /// Another greeting.
    #[must_use]
    pub fn greets(mut self, greeting: &[u8]) -> Self {
        self.greeting = Some(greeting.to_vec());
        self
    }

    /// Another answer to an option, made from the honest one.
    #[must_use]
    pub fn answers(mut self, option: OptionCode, act: impl Fn(&[u8]) -> Act + Send + Sync + 'static) -> Self {
        self.option = Some((option, Box::new(act)));
        self
    }

    /// Other replies to requests; `None` stays honest.
    #[must_use]
    pub fn replies(mut self, act: impl Fn(&Answer<'_>) -> Option<Act> + Send + Sync + 'static) -> Self {
        self.reply = Some(Box::new(act));
        self
    }

    /// Hangs up after this many bytes on each connection.
    #[must_use]
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = bytes;
        self
    }

    /// Says everything in pieces of this many bytes.
    #[must_use]
    pub fn in_pieces(mut self, piece: usize) -> Self {
        self.piece = piece;
        self
    }
}

/// Serves one volume as a script says. Its threads end with the test's process.
pub struct EvilServer {
    directory: TempDir,
    connections: Arc<AtomicUsize>,
}

impl EvilServer {
    /// Starts.
    pub fn start(volume: Vec<u8>, script: Script) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let (shared, connections) = (Arc::new((volume, script)), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                let (shared, stream) = (Arc::clone(&shared), stream.unwrap());
                // A client that hangs up is right to.
                thread::spawn(move || Serving::new(&shared.0, &shared.1, stream).serve());
            }
        });
        Self {
            directory,
            connections,
        }
    }

    /// Where it is.
    pub fn uri(&self) -> String {
        format!(
            "nbd+unix:///?socket={}",
            self.directory.path().join("s").display()
        )
    }

    /// The same, parsed.
    pub fn nbd_uri(&self) -> NbdUri {
        self.uri().parse().unwrap()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

struct Shelf(u64);

impl Catalogue for Shelf {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        Ok(vec![ListedExport {
            name: ExportName::default(),
            description: String::new(),
        }])
    }

    fn describe(&self, _: &str) -> Result<ExportInfo, Refusal> {
        Ok(ExportInfo {
            name: ExportName::default(),
            size: self.0,
            flags: TransmissionFlags::HAS_FLAGS
                | TransmissionFlags::READ_ONLY
                | TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::SEND_DF,
            block: BlockSizes::default(),
            description: String::new(),
        })
    }

    fn contexts(&self, _: &str, _: HeaderStyle) -> Result<Vec<ContextName>, Refusal> {
        Ok(vec![ContextName::new("base:allocation").unwrap()])
    }
}

struct Serving<'a> {
    volume: &'a [u8],
    script: &'a Script,
    stream: UnixStream,
    left: usize,
    input: BytesMut,
}

/// The connection has ended.
struct Over;

impl<'a> Serving<'a> {
    fn new(volume: &'a [u8], script: &'a Script, stream: UnixStream) -> Self {
        Self {
            volume,
            script,
            stream,
            left: script.cut,
            input: BytesMut::new(),
        }
    }

    fn serve(mut self) {
        let Ok(session) = self.shake_hands() else {
            return;
        };
        let _ = self.transmit(&session);
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let bytes = &bytes[..bytes.len().min(self.left)];
        for piece in bytes.chunks(self.script.piece) {
            self.stream.write_all(piece).map_err(|_| Over)?;
        }
        self.left -= bytes.len();
        if self.left == 0 { Err(Over) } else { Ok(()) }
    }

    fn act(&mut self, act: Act) -> Result<(), Over> {
        match act {
            Act::Say(bytes) => self.send(&bytes),
            Act::SayForEver(bytes) => loop {
                self.send(&bytes)?;
            },
            Act::SayAndLeave(bytes) => self.send(&bytes).and(Err(Over)),
            Act::FallSilent => {
                // Until the client leaves.
                self.stream.read_to_end(&mut Vec::new()).ok();
                Err(Over)
            }
        }
    }

    fn receive(&mut self) -> Result<(), Over> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(count) if count > 0 => self.input.extend_from_slice(&buffer[..count]),
            _ => return Err(Over),
        }
        Ok(())
    }

    fn shake_hands(&mut self) -> Result<Negotiated, Over> {
        let mut output = BytesMut::new();
        let mut handshake = ServerHandshake::start(&mut output);
        let greeting = self.script.greeting.clone().unwrap_or_else(|| output.to_vec());
        self.send(&greeting)?;
        output.clear();
        loop {
            let disguise = self.disguise_option();
            let option = self.next_option();
            let progress = handshake.advance(&mut self.input, &mut output, &Shelf(self.volume.len() as u64));
            let Ok(progress) = progress else {
                return Err(Over);
            };
            let mut honest = output.split().to_vec();
            if let Some(code) = disguise.filter(|_| !honest.is_empty()) {
                honest[8..12].copy_from_slice(&code.0.to_be_bytes());
            }
            match &self.script.option {
                Some((wanted, act)) if disguise.or(option) == Some(*wanted) && !honest.is_empty() => {
                    self.act(act(&honest))?;
                }
                _ => self.send(&honest)?,
            }
            match progress {
                Progress::NeedInput => self.receive()?,
                Progress::Transmission(session) => return Ok(*session),
                Progress::Closed => return Err(Over),
                _ => {}
            }
        }
    }

    fn next_option(&self) -> Option<OptionCode> {
        let header = self.input.get(..16)?;
        header
            .starts_with(b"IHAVEOPT")
            .then(|| OptionCode(u32::from_be_bytes(header[8..12].try_into().unwrap())))
    }

    /// Makes an option that this server is too old for one that nobody knows.
    fn disguise_option(&mut self) -> Option<OptionCode> {
        let code = self.next_option()?;
        let known = match code {
            OptionCode::EXTENDED_HEADERS => self.script.style == HeaderStyle::Extended,
            OptionCode::STRUCTURED_REPLY => self.script.style != HeaderStyle::Simple,
            _ => true,
        };
        if known {
            return None;
        }
        self.input[8..12].copy_from_slice(&99_u32.to_be_bytes());
        Some(code)
    }

    fn transmit(&mut self, session: &Negotiated) -> Result<(), Over> {
        let mut decoder = RequestDecoder::default();
        loop {
            match decoder.decode(&mut self.input, session) {
                Ok(Some(Incoming::Request { reply_to, command })) => {
                    let honest = self.honest(session, reply_to, &command);
                    let answer = Answer {
                        command: &command,
                        to: reply_to,
                        honest: &honest,
                        session,
                    };
                    let act = self.script.reply.as_ref().and_then(|act| act(&answer));
                    self.act(act.unwrap_or(Act::Say(honest)))?;
                }
                Ok(Some(Incoming::Refused { reply_to, rule })) => {
                    let mut out = BytesMut::new();
                    let text = ErrorText::new(rule.to_string());
                    ReplyEncoder::new(session).error(reply_to, rule.errno(), &text, &mut out);
                    self.send(&out)?;
                }
                Ok(Some(Incoming::Disconnect)) | Err(_) => return Err(Over),
                Ok(None) => self.receive()?,
            }
        }
    }

    fn honest(&self, session: &Negotiated, to: ReplyTo, command: &Command) -> Vec<u8> {
        let (encoder, mut out) = (ReplyEncoder::new(session), BytesMut::new());
        match command {
            Command::Read { offset, length, .. } if *length > 0 => {
                encoder.data(to, *offset, *length, true, &mut out);
                let start = usize::try_from(*offset).unwrap();
                out.extend_from_slice(&self.volume[start..start + *length as usize]);
            }
            Command::BlockStatus {
                offset,
                length,
                req_one,
                ..
            } => {
                let query = StatusQuery {
                    length: *length,
                    req_one: *req_one,
                };
                let descriptor = Descriptor {
                    length: self.volume.len() as u64 - offset,
                    status: 0,
                };
                let id = session.contexts[0].id;
                encoder.status(to, id, query, &[descriptor], true, &mut out);
            }
            Command::Read { .. } | Command::Flush | Command::Cache { .. } => encoder.success(to, &mut out),
            _ => encoder.error(to, Errno::Perm, &ErrorText::default(), &mut out),
        }
        out.to_vec()
    }
}

/// An option reply, well framed.
pub fn option_reply(option: OptionCode, reply: OptionReplyCode, data: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    nbd_export::proto::option::encode_option_reply(option, reply, data, &mut out);
    out.copy_to_bytes(out.remaining()).to_vec()
}
