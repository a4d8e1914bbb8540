//! From what an export answers to the bytes of a reply.

use bytes::BytesMut;
use volmap::range::ByteRange;
use volmap::storage::Zeroing;

use super::outgoing::Segment;
use crate::export::{ContextIndex, Export, ExportError, Piece, Pieces, ReadShape};
use crate::proto::transmission::RuleBroken;
use crate::proto::transmission::replies::{ReplyEncoder, StatusQuery};
use crate::proto::{Command, ContextId, Errno, ErrorText, ReplyTo};

/// Room for the headers of many replies, so that few of them need memory of their own.
const HEADS_CHUNK: usize = 4096;

/// A selected context of a session, and where its export lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Selected {
    pub(super) id: ContextId,
    pub(super) index: ContextIndex,
}

/// What is needed to serve the requests of one session.
pub(super) struct Answerer {
    pub(super) export: std::sync::Arc<dyn Export>,
    pub(super) encoder: ReplyEncoder,
    pub(super) selected: Vec<Selected>,
}

/// Where replies are written to.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// Memory for data.
    pub(super) pieces: Pieces,
    heads: BytesMut,
    segments: Vec<Segment>,
}

impl Replies {
    /// For a stream that sends files by reference, or one that does not.
    pub(super) fn new(sends_files: bool) -> Self {
        Self::with(if sends_files {
            Pieces::with_files()
        } else {
            Pieces::default()
        })
    }

    /// With this memory for data.
    pub(super) fn with(pieces: Pieces) -> Self {
        Self {
            pieces,
            ..Self::default()
        }
    }

    /// Takes out what was written.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Segment> {
        self.seal_head();
        self.segments.drain(..)
    }

    fn head(&mut self) -> &mut BytesMut {
        if self.heads.capacity() - self.heads.len() < HEADS_CHUNK / 16 {
            self.heads.reserve(HEADS_CHUNK);
        }
        &mut self.heads
    }

    fn seal_head(&mut self) {
        if !self.heads.is_empty() {
            self.segments.push(Segment::Head(self.heads.split().freeze()));
        }
    }

    /// Drops what a reply that came to nothing has written.
    fn clear(&mut self) {
        self.heads.clear();
        self.segments.clear();
        self.pieces.clear();
    }
}

/// Why a request has no other answer than an error.
#[derive(Debug)]
struct Refusal {
    errno: Errno,
    text: String,
}

impl From<ExportError> for Refusal {
    fn from(error: ExportError) -> Self {
        let errno = match &error {
            ExportError::Gone(_) => Errno::Shutdown,
            ExportError::ReadOnly => Errno::Perm,
            ExportError::NotFast => Errno::NotSup,
            ExportError::Unsupported(_) => Errno::Inval,
            ExportError::Io(source) => Errno::from(source),
        };
        Self {
            errno,
            text: error.to_string(),
        }
    }
}

impl Answerer {
    /// Serves a request. Blocks.
    pub(super) fn answer(&self, to: ReplyTo, command: &Command, out: &mut Replies) {
        if let Err(refusal) = self.serve(to, command, out) {
            self.refuse(to, refusal, out);
        }
    }

    /// Serves a request if that needs no wait; `false`, and nothing in `out`, if it would.
    pub(super) fn answer_at_once(&self, to: ReplyTo, command: &Command, out: &mut Replies) -> bool {
        let served = match *command {
            Command::Read {
                offset,
                length,
                dont_fragment,
            } => match ByteRange::new(offset, length.into()) {
                Some(range) => self.read_at_once(to, range, dont_fragment, out),
                None => Ok(false),
            },
            Command::BlockStatus { .. } | Command::Flush if self.export.answers_at_once() => {
                self.serve(to, command, out).map(|()| true)
            }
            _ => Ok(false),
        };
        served.unwrap_or_else(|refusal| {
            self.refuse(to, refusal, out);
            true
        })
    }

    /// An error as a whole reply.
    pub(super) fn error(&self, to: ReplyTo, errno: Errno, text: impl Into<String>, out: &mut Replies) {
        self.encoder.error(to, errno, &ErrorText::new(text), out.head());
    }

    /// The error of a request that breaks a rule.
    pub(super) fn refusal(&self, to: ReplyTo, rule: RuleBroken, out: &mut Replies) {
        tracing::debug!(cookie = %to.cookie, %rule, "request refused");
        self.encoder.refusal(to, rule, out.head());
    }

    /// The answer where there is none, because of a bug of ours: a client that never gets one would wait for ever. The panic
    /// itself is in the log.
    pub(super) fn bug(&self, to: ReplyTo, out: &mut Replies) {
        self.error(to, Errno::Io, "internal error", out);
    }

    fn refuse(&self, to: ReplyTo, Refusal { errno, text }: Refusal, out: &mut Replies) {
        tracing::debug!(cookie = %to.cookie, %errno, text, "request failed");
        out.clear();
        self.error(to, errno, text, out);
    }

    fn serve(&self, to: ReplyTo, command: &Command, out: &mut Replies) -> Result<(), Refusal> {
        // The session has held every range against the size, so `None` is a range of no bytes: nothing to do, but to tell that
        // there is nothing any more (law H6).
        match *command {
            Command::Read {
                offset,
                length,
                dont_fragment,
            } => {
                if let Some(range) = ByteRange::new(offset, length.into()) {
                    self.export
                        .read(range, self.shape(dont_fragment), &mut out.pieces)?;
                    self.content(to, out);
                    return Ok(());
                }
                self.export.standing()?;
            }
            Command::Write {
                offset,
                ref data,
                fua,
            } => {
                if !data.is_empty() {
                    self.export.write(offset, data, fua)?;
                }
            }
            Command::Flush => self.export.flush()?,
            Command::Trim { offset, length, fua } => {
                if let Some(range) = ByteRange::new(offset, length) {
                    self.export.trim(range, fua)?;
                }
            }
            Command::Cache { offset, length } => match ByteRange::new(offset, length) {
                Some(range) => self.export.cache(range)?,
                None => self.export.standing()?,
            },
            Command::WriteZeroes {
                offset,
                length,
                fua,
                no_hole,
                fast,
            } => {
                if let Some(range) = ByteRange::new(offset, length) {
                    let may_punch = !no_hole;
                    self.export
                        .write_zeroes(range, Zeroing { may_punch, fast }, fua)?;
                }
            }
            Command::BlockStatus {
                offset,
                length,
                req_one,
                ref filter,
            } => {
                if let Some(range) = ByteRange::new(offset, length) {
                    return self.block_status(to, range, req_one, filter.as_deref(), out);
                }
            }
        }
        self.encoder.success(to, out.head());
        Ok(())
    }

    fn shape(&self, whole: bool) -> ReadShape {
        if whole || !self.encoder.has_chunks() {
            ReadShape::Whole
        } else {
            ReadShape::Sparse
        }
    }

    fn read_at_once(
        &self,
        to: ReplyTo,
        range: ByteRange,
        whole: bool,
        out: &mut Replies,
    ) -> Result<bool, Refusal> {
        let served = self
            .export
            .read_at_once(range, self.shape(whole), &mut out.pieces)?;
        if served {
            self.content(to, out);
        } else {
            out.pieces.clear();
        }
        Ok(served)
    }

    /// The pieces of a read as a whole reply.
    fn content(&self, to: ReplyTo, out: &mut Replies) {
        let mut pieces = std::mem::take(&mut out.pieces);
        let count = pieces.as_slice().len();
        for (n, piece) in pieces.drain().enumerate() {
            let done = n + 1 == count;
            match piece {
                Piece::Data { offset, bytes } => {
                    let length = length_32(bytes.len() as u64);
                    self.encoder.data(to, offset, length, done, out.head());
                    out.seal_head();
                    out.segments.push(Segment::Data(bytes));
                }
                Piece::File { range, file } => {
                    let length = length_32(range.len());
                    self.encoder.data(to, range.start(), length, done, out.head());
                    out.seal_head();
                    out.segments.push(Segment::File { range, file });
                }
                Piece::Zeroes(range) => {
                    let length = length_32(range.len());
                    self.encoder.hole(to, range.start(), length, done, out.head());
                }
            }
        }
        out.pieces = pieces;
    }

    fn block_status(
        &self,
        to: ReplyTo,
        range: ByteRange,
        req_one: bool,
        filter: Option<&[ContextId]>,
        out: &mut Replies,
    ) -> Result<(), Refusal> {
        let wanted: Vec<Selected> = self
            .selected
            .iter()
            .filter(|context| filter.is_none_or(|ids| ids.contains(&context.id)))
            .copied()
            .collect();
        let indices: Vec<ContextIndex> = wanted.iter().map(|context| context.index).collect();
        let answer = self.export.block_status(range, &indices, req_one)?;
        let query = StatusQuery {
            length: range.len(),
            req_one,
        };
        for (n, (context, status)) in wanted.iter().zip(&answer).enumerate() {
            let done = n + 1 == answer.len();
            self.encoder
                .status(to, context.id, query, &status.descriptors, done, out.head());
        }
        Ok(())
    }
}

/// Lengths of content chunks: requests are at most 32 MiB long.
fn length_32(length: u64) -> u32 {
    u32::try_from(length).expect("a request has at most 32 MiB")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;
    use volmap::frozen::{ChangedMap, StatusExtent};
    use volmap::generation::Generation;
    use volmap::map::Content;
    use volmap::store::{Below, Place, StoreGraph, StoreKind};

    use super::*;
    use crate::export::scripted::{Scripted, segment, store};
    use crate::export::{FrozenExport, Parent};
    use crate::proto::{Cookie, HeaderStyle, Negotiated, SelectedContext};

    /// The example of docs/x-volmap.md: 64 KiB of a file, its first half on lun0 from 1 MiB on, then a hole, then data whose
    /// place moved to 16 MiB.
    fn example() -> FrozenExport {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store(StoreKind::Disk, "lun0", 1 << 30, Below::Disk));
        let file = graph.add(store(
            StoreKind::File,
            "f",
            65_536,
            Below::Segments(vec![
                segment(0, 32_768, disk, 1 << 20),
                segment(49_152, 16_384, disk, 16 << 20),
            ]),
        ));
        let extent = |start, len, content, counter: u64, place| StatusExtent {
            range: ByteRange::new(start, len).unwrap(),
            content,
            generation: Generation::from_wire(0x12_3456_789a << 24 | counter),
            place: match place {
                true => Some(Place {
                    store: file,
                    offset: start,
                }),
                false => None,
            },
        };
        let extents = vec![
            extent(0, 32_768, Content::Data, 1, true),
            extent(32_768, 16_384, Content::Hole, 1, false),
            extent(49_152, 16_384, Content::Data, 2, true),
        ];
        let same = [ByteRange::new(0, 16_384), ByteRange::new(20_480, 28_672)];
        FrozenExport::new(Scripted::new(graph, extents)).since(vec![Parent {
            uuid: Uuid::from_u128(0xffee_ddcc_bbaa_9988_7766_5544_3322_1100),
            changed: ChangedMap::all_but(65_536, same.into_iter().flatten()),
        }])
    }

    fn answerer(names: &[&str]) -> Answerer {
        let export: Arc<dyn Export> = Arc::new(example());
        let position = |name: &str| export.contexts().iter().position(|c| c.name == name).unwrap();
        let selected: Vec<Selected> = (1..)
            .zip(names)
            .map(|(id, name)| Selected {
                id: ContextId(id),
                index: ContextIndex(position(name)),
            })
            .collect();
        let session = Negotiated {
            requested: crate::proto::ExportName::default(),
            export: crate::proto::ExportInfo {
                name: crate::proto::ExportName::default(),
                size: 65_536,
                flags: crate::proto::TransmissionFlags::HAS_FLAGS,
                block: crate::proto::BlockSizes::default(),
                description: String::new(),
            },
            style: HeaderStyle::Extended,
            contexts: Vec::<SelectedContext>::new(),
        };
        Answerer {
            encoder: ReplyEncoder::new(&session),
            export,
            selected,
        }
    }

    fn hex(bytes: &[u8]) -> Vec<String> {
        let words: Vec<String> = bytes
            .chunks(8)
            .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        words.chunks(4).map(|line| line.join(" ")).collect()
    }

    const TO: ReplyTo = ReplyTo {
        cookie: Cookie(0xc0),
        offset: 0,
    };

    fn query(filter: Option<Vec<ContextId>>) -> Command {
        Command::BlockStatus {
            offset: 0,
            length: 65_536,
            req_one: false,
            filter,
        }
    }

    fn request(filter: Option<Vec<ContextId>>) -> String {
        let mut out = BytesMut::new();
        query(filter).encode(HeaderStyle::Extended, TO.cookie, &mut out);
        hex(&out).join("\n")
    }

    fn ask(answerer: &Answerer, filter: Option<Vec<ContextId>>) -> Vec<u8> {
        let mut out = Replies::default();
        answerer.answer(TO, &query(filter), &mut out);
        let head = |segment| match segment {
            Segment::Head(bytes) => bytes,
            other => panic!("a status is all head: {other:?}"),
        };
        out.drain().flat_map(head).collect()
    }

    const GOLDEN_QUERY: &str = "21e41c7100000007 00000000000000c0 0000000000000000 0000000000010000";

    const GOLDEN_FILTER: &str = "\
        21e41c7100200007 00000000000000c0 0000000000000000 000000000000000c\n\
        0000000000010000 00000002";

    /// Quoted in docs/x-volmap.md, "A map in bytes".
    const GOLDEN: &str = "\
        6e8a278c00000006 00000000000000c0 0000000000000000 0000000000000038\n\
        0000000100000003 0000000000008000 0000000000000000 0000000000004000\n\
        0000000000000003 0000000000004000 0000000000000000 6e8a278c00000006\n\
        00000000000000c0 0000000000000000 0000000000000028 0000000200000002\n\
        000000000000c000 123456789a000001 0000000000004000 123456789a000002\n\
        6e8a278c00010006 00000000000000c0 0000000000000000 0000000000000038\n\
        0000000300000003 0000000000008000 8000000000100000 0000000000004000\n\
        0000000000000000 0000000000004000 8000000001000000";

    /// Quoted in docs/x-volmap.md, "A validation in bytes".
    const GOLDEN_VALIDATION: &str = "\
        6e8a278c00010006 00000000000000c0 0000000000000000 0000000000000028\n\
        0000000200000002 000000000000c000 123456789a000001 0000000000004000\n\
        123456789a000002";

    /// Quoted in docs/x-volmap.md, "What changed, in bytes".
    const GOLDEN_CHANGED: &str = "\
        6e8a278c00000006 00000000000000c0 0000000000000000 0000000000000038\n\
        0000000100000003 0000000000008000 0000000000000000 0000000000004000\n\
        0000000000000003 0000000000004000 0000000000000000 6e8a278c00010006\n\
        00000000000000c0 0000000000000000 0000000000000048 0000000200000004\n\
        0000000000004000 0000000000000000 0000000000001000 0000000000000001\n\
        0000000000007000 0000000000000000 0000000000004000 0000000000000001";

    #[test]
    fn golden_changes() {
        let answerer = answerer(&[
            "base:allocation",
            "x-volmap:changed:ffeeddcc-bbaa-9988-7766-554433221100",
        ]);
        assert_eq!(hex(&ask(&answerer, None)).join("\n"), GOLDEN_CHANGED);
    }

    #[test]
    fn golden_map_and_validation() {
        let answerer = answerer(&["base:allocation", "x-volmap:generation", "x-volmap:disk:id:lun0"]);
        assert_eq!(request(None), GOLDEN_QUERY);
        assert_eq!(hex(&ask(&answerer, None)).join("\n"), GOLDEN);
        assert_eq!(request(Some(vec![ContextId(2)])), GOLDEN_FILTER);
        let validation = ask(&answerer, Some(vec![ContextId(2)]));
        assert_eq!(hex(&validation).join("\n"), GOLDEN_VALIDATION);
    }

    #[test]
    fn the_document_quotes_these_bytes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/x-volmap.md");
        let document = std::fs::read_to_string(path).unwrap();
        for golden in [
            GOLDEN_QUERY,
            GOLDEN,
            GOLDEN_FILTER,
            GOLDEN_VALIDATION,
            GOLDEN_CHANGED,
        ] {
            let quoted: Vec<String> = golden.lines().map(|line| format!("    {line}\n")).collect();
            assert!(
                document.contains(&quoted.concat()),
                "docs/x-volmap.md does not show\n{golden}"
            );
        }
    }
}
