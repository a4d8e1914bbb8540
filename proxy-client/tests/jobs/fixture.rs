//! Volumes with old and new data, and images of them.

use std::path::{Path, PathBuf};

use proxy_client::image::{
    Content, DEFAULT_LEVEL, Encoder, End, Header, Kind, LunProof, LunRecord, Receipt, Record, Totals,
    Transport, compress_piece,
};
use tempfile::TempDir;
use uuid::Uuid;
use volmap::generation::Generation;
use volmap::range::ByteRange;

/// A stretch of a volume.
pub(crate) type Stretch = (u64, Kind);

/// Data, holes that are longer than what is zeroed by writing, and ends off every grid.
pub(crate) const VOLUME: &[Stretch] = &[
    (70_000, Kind::Data),
    ((3 << 20) + 5000, Kind::Hole),
    (1, Kind::Data),
    (4095, Kind::Zero),
    (2 << 20, Kind::Data),
    (5 << 20, Kind::Zero),
    (999, Kind::Data),
    (777, Kind::Hole),
];

/// The same with a range that could not be read.
pub(crate) const DAMAGED: &[Stretch] = &[
    (100_000, Kind::Data),
    (4096, Kind::Unreadable),
    (200_000, Kind::Hole),
];

/// An image in a folder of its own.
pub(crate) struct Fixture {
    pub(crate) folder: TempDir,
    pub(crate) plain: Vec<u8>,
    pub(crate) image: Vec<u8>,
    pub(crate) end: End,
}

impl Fixture {
    pub(crate) fn new(stretches: &[Stretch]) -> Self {
        let (mut records, mut plain) = (Vec::new(), Vec::new());
        for (length, kind) in stretches {
            let range = ByteRange::new(plain.len() as u64, *length).unwrap();
            let read = *kind == Kind::Data;
            records.push(Record {
                range,
                kind: *kind,
                receipt: Receipt {
                    transport: if read { Transport::Direct } else { Transport::None },
                    lun: 0,
                    generation: Generation::from_wire(7),
                    rounds: 0,
                },
            });
            let end = usize::try_from(range.end()).unwrap();
            if read {
                plain.extend((plain.len()..end).map(|at| u8::try_from(at * 31 % 251).unwrap() | 1));
            }
            plain.resize(end, 0);
        }
        let header = Header {
            image: Uuid::from_u128(1),
            frozen: Uuid::from_u128(2),
            parent: None,
            size: plain.len() as u64,
            created: 1_795_305_600,
            volume: "vm1".into(),
            description: "frozen image: method=reflink".into(),
            stores: Vec::new(),
            luns: vec![LunRecord {
                identity: "id:lun0".parse().unwrap(),
                proof: LunProof::SampledOnly,
                path: "/dev/sdx".into(),
            }],
            software: "test".into(),
            job: None,
        };
        let (mut encoder, first) = Encoder::new(&header);
        let mut image = first.to_vec();
        let range = ByteRange::new(0, header.size).unwrap();
        let piece = compress_piece(range, Content::Bytes(&plain), &records, DEFAULT_LEVEL);
        let mut written = encoder.append(piece).unwrap();
        let (rest, end) = encoder.finish(Totals::default()).unwrap();
        written.extend(rest);
        written.iter().for_each(|bytes| image.extend_from_slice(bytes));
        let fixture = Self {
            folder: tempfile::tempdir().unwrap(),
            plain,
            image,
            end,
        };
        std::fs::write(fixture.image_path(), &fixture.image).unwrap();
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn image_path(&self) -> PathBuf {
        self.path("image")
    }

    /// Writes another image beside the good one.
    pub(crate) fn with_image(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path("other-image");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The image with one byte changed in the middle of its data: its outline stays good.
    pub(crate) fn changed(&self) -> PathBuf {
        let mut image = self.image.clone();
        let middle = image.len() / 2;
        image[middle] ^= 1;
        self.with_image(&image)
    }

    /// Files in the folder, but for images.
    pub(crate) fn left_over(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut paths: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| !path.ends_with("image") && !path.ends_with("other-image"))
            .collect();
        paths.sort();
        paths
    }

    /// Ends of frames, by the seek table.
    pub(crate) fn frame_ends(&self) -> Vec<usize> {
        let image = &self.image;
        let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        let count = number(image.len() - 9);
        let entries = image.len() - 9 - 8 * count;
        (0..count)
            .scan(0, |end, index| {
                *end += number(entries + 8 * index);
                Some(*end)
            })
            .collect()
    }
}

/// Where nobody looks at progress.
pub(crate) fn quiet(_: u64, _: u64) {}

/// Runs a job to its end, with all that it has begun.
pub(crate) fn in_runtime<T>(job: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(job)
}

/// A file full of old data.
pub(crate) fn old_data(path: &Path, length: usize) {
    std::fs::write(path, vec![0xa5; length]).unwrap();
}
