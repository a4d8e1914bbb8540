//! Bytes that are sent by reference, of an image that goes while they are on their way.

use std::fs::File;
use std::os::unix::fs::FileExt;

use volmap::frozen::{Description, FrozenError, Status, StatusExtent};
use volmap::generation::Generation;
use volmap::map::{Content, Extent};
use volmap::store::StoreGraph;

use super::*;

const SIZE: u64 = 64 * MIB;

/// An image all of whose bytes lie in a file that nobody writes to.
struct Referred {
    image: Arc<Scripted>,
    file: Arc<File>,
}

impl Referred {
    fn new() -> Arc<Self> {
        let all = StatusExtent {
            range: ByteRange::new(0, SIZE).unwrap(),
            content: Content::Data,
            generation: Generation::NEVER_DIRECT,
            place: None,
        };
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; usize::try_from(SIZE).unwrap()], 0)
            .unwrap();
        Arc::new(Self {
            image: Scripted::new(StoreGraph::new(), vec![all]),
            file: Arc::new(file),
        })
    }
}

impl FrozenImage for Referred {
    fn description(&self) -> &Description {
        self.image.description()
    }

    fn size(&self) -> u64 {
        SIZE
    }

    fn graph(&self) -> Arc<StoreGraph> {
        self.image.graph()
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        self.image.status(range, limit)
    }

    fn content(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, FrozenError> {
        self.image.content(range, limit)
    }

    fn answers_at_once(&self) -> bool {
        true
    }

    fn immutable_file(&self, _: ByteRange) -> Result<Option<Arc<File>>, FrozenError> {
        Ok(Some(Arc::clone(&self.file)))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        Ok(self.file.read_exact_at(buf, offset)?)
    }

    fn stands(&self) -> Result<(), FrozenError> {
        self.image.stands()
    }

    fn thaw(&self) {
        self.image.thaw();
    }
}

/// Law H6: what goes by reference is read only when the socket takes it, and then nobody vouches for the file any more.
#[tokio::test]
async fn nothing_more_is_sent_of_an_image_that_is_gone() {
    let image = Referred::new();
    let export = Arc::new(FrozenExport::new(image.clone()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
    for n in 0..2 {
        session.submit(&read(n * 32 * MIB, 32 << 20));
    }
    session.stream.write_all_buf(&mut session.output).await.unwrap();
    session.stream.read_exact(&mut [0; 4096]).await.unwrap();
    image.thaw();
    let mut heard = Vec::new();
    let mut to_the_end = session.stream.take(8 << 20);
    to_the_end.read_to_end(&mut heard).await.unwrap();
    // What the socket had taken before, and no whole reply.
    assert!(heard.len() < 8 << 20, "it goes on");
    // Others are told.
    let mut next = server.session("e", HeaderStyle::Structured, &[]).await;
    assert_eq!(
        next.ask(&read(0, 1 << 20)).await.unwrap_err().errno,
        Errno::Shutdown
    );
}

#[tokio::test]
async fn files_arrive_whole() {
    let export = Arc::new(FrozenExport::new(Referred::new()));
    let server = Running::start(export, Slow::new(Duration::ZERO)).await;
    let mut session = server.session("e", HeaderStyle::Structured, &[]).await;
    let Ok(Completion::Read(reply)) = session.ask(&read(MIB, 32 << 20)).await else {
        panic!("read");
    };
    assert!(reply.data.len() == 32 << 20 && reply.data.iter().all(|byte| *byte == 7));
}
