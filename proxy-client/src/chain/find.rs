//! The images that an incremental one continues: those that are named, and those beside it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::directory::directory_of;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Header, ParentRecord, Root};
use crate::image_source::ImageSource;

/// Images that a chain has at most: a restore opens all of them.
const CHAIN_MAX: usize = 1024;

/// Images that a chain may have and still be continued: far fewer than can be read, and than a process can have open.
const CONTINUED_MAX: usize = 256;

/// A file that may be the parent.
struct Candidate {
    path: PathBuf,
    header: Header,
    root: Root,
}

/// Paths of the chain that `image` is the newest of, newest first. Parents are looked for among `named`, then beside the image.
///
/// # Errors
/// [`ErrorKind::ImageBad`]: one is missing, or is not the one that was continued any more.
pub(crate) fn find_parents(image: &Path, named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let (header, _) = ImageSource::open(image)?.outline()?;
    find_below(image, header, named, &[image])
}

/// Paths of the chain that a new image continues, whose parent is `image`; newest first.
///
/// # Errors
/// As [`find_parents`]. [`ErrorKind::LineageBroken`]: it is so long already that what continued it could some day not be read.
pub(crate) fn find_continued(image: &Path) -> Result<Vec<PathBuf>> {
    let chain = find_parents(image, &[])?;
    if chain.len() >= CONTINUED_MAX {
        let message = format!(
            "the chain has {} images already, and {CONTINUED_MAX} are the most",
            chain.len()
        );
        return Err(Error::new(ErrorKind::LineageBroken, message).at_path(image));
    }
    Ok(chain)
}

/// Paths of the chain that an image continues which is not whole yet, newest first and without the image. Parents are looked for beside those
/// that are named too, where the backup found them.
///
/// # Errors
/// As [`find_parents`].
pub(crate) fn find_parents_of_unfinished(
    image: &Path,
    header: &Header,
    named: &[PathBuf],
) -> Result<Vec<PathBuf>> {
    let beside: Vec<&Path> = named.iter().map(PathBuf::as_path).chain([image]).collect();
    let mut chain = find_below(image, header.clone(), named, &beside)?;
    chain.remove(0);
    Ok(chain)
}

fn find_below(image: &Path, header: Header, named: &[PathBuf], beside: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut chain = vec![image.to_owned()];
    let mut wanted = header.parent;
    let mut candidates: Option<Vec<Candidate>> = None;
    let mut below = header;
    while let Some(parent) = wanted {
        if chain.len() == CHAIN_MAX {
            let message = format!("the chain has more than {CHAIN_MAX} images");
            return Err(Error::new(ErrorKind::ImageBad, message).at_path(image));
        }
        let candidates = match &mut candidates {
            Some(candidates) => candidates,
            none => none.insert(candidates_of(named, beside)?),
        };
        let fits = |candidate: &Candidate| is_parent(&candidate.header, candidate.root, parent);
        if !candidates.iter().any(fits) {
            candidates.extend(called_as_then(&below, beside));
        }
        let found = candidates.iter().find(|candidate| fits(candidate));
        let Some(found) = found.filter(|found| !chain.contains(&found.path)) else {
            return Err(missing(
                &below,
                parent,
                candidates,
                chain.last().unwrap_or(&chain[0]),
            ));
        };
        chain.push(found.path.clone());
        below = found.header.clone();
        wanted = found.header.parent;
    }
    Ok(chain)
}

/// Whether an image is the one that was continued: the same frozen image *and* the same root.
pub(super) fn is_parent(header: &Header, root: Root, wanted: ParentRecord) -> bool {
    header.frozen == wanted.frozen && root == wanted.root
}

fn missing(of: &Header, parent: ParentRecord, candidates: &[Candidate], path: &Path) -> Error {
    let changed = candidates.iter().find(|c| c.header.frozen == parent.frozen);
    let message = match changed {
        Some(other) => format!(
            "{} is of the frozen image {} that this image continues, but has another root: it is another backup of it, or was changed",
            other.path.display(),
            parent.frozen
        ),
        None => format!(
            "the image of {} that this image of {} continues is missing: give it, or put it beside this one",
            parent.frozen, of.frozen
        ),
    };
    Error::new(ErrorKind::ImageBad, message).at_path(path)
}

/// Images beside one of `beside` that have the name that the parent of an image had when it was continued: they may be of another ending.
fn called_as_then(image: &Header, beside: &[&Path]) -> Vec<Candidate> {
    let told = image.job.as_ref().and_then(|job| job.parent.as_deref());
    let Some(name) = told.and_then(|path| Path::new(path).file_name()) else {
        return Vec::new();
    };
    let paths = beside.iter().map(|path| place(path).0.join(name));
    // A pipe would be waited for.
    let paths = paths.filter(|path| path.is_file());
    paths.filter_map(|path| look(&path).ok()).collect()
}

/// What an image says of itself.
fn look(path: &Path) -> Result<Candidate> {
    let (header, end) = ImageSource::open(path)?.outline()?;
    Ok(Candidate {
        path: path.to_owned(),
        header,
        root: end.root,
    })
}

/// Named images must be images; what merely lies beside one of `beside` may be anything. Only what is called as that one is, is opened:
/// a volume that a server has may lie there too, and whoever opens it takes its lease away, and waits for that.
fn candidates_of(named: &[PathBuf], beside: &[&Path]) -> Result<Vec<Candidate>> {
    let mut candidates = named.iter().map(|path| look(path)).collect::<Result<Vec<_>>>()?;
    let places: BTreeSet<(&Path, Option<&OsStr>)> = beside.iter().map(|path| place(path)).collect();
    for (directory, extension) in places {
        let failed = |error| Error::io("looking for the parents of the image", directory, error);
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // A pipe would be waited for.
            if path.extension() == extension
                && path.is_file()
                && let Ok(candidate) = look(&path)
            {
                candidates.push(candidate);
            }
        }
    }
    Ok(candidates)
}

/// Where an image lies, and how those beside it are called.
fn place(image: &Path) -> (&Path, Option<&OsStr>) {
    (directory_of(image), image.extension())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use uuid::Uuid;
    use volmap::generation::Generation;
    use volmap::range::ByteRange;

    use super::*;
    use crate::chain::Chain;
    use crate::image::{
        Content, DEFAULT_LEVEL, Encoder, Kind, LEAF, Receipt, Record, Totals, compress_piece,
    };

    fn header(number: u128, parent: Option<ParentRecord>) -> Header {
        Header {
            image: Uuid::from_u128(number),
            frozen: Uuid::from_u128(number),
            parent,
            size: LEAF,
            created: 0,
            volume: "vm".into(),
            description: String::new(),
            stores: Vec::new(),
            luns: Vec::new(),
            software: "proxy-client test".into(),
            job: None,
        }
    }

    /// An image of a leaf of zeroes; what one that continues it says of it.
    fn write(path: &Path, number: u128, parent: Option<ParentRecord>) -> ParentRecord {
        write_with(path, &header(number, parent))
    }

    fn write_with(path: &Path, header: &Header) -> ParentRecord {
        let (mut encoder, first) = Encoder::new(header);
        let range = ByteRange::new(0, LEAF).unwrap();
        let record = Record {
            range,
            kind: Kind::Zero,
            receipt: Receipt::unread(Generation::NEVER_DIRECT),
        };
        let piece = compress_piece(range, Content::Zeroes, &[record], DEFAULT_LEVEL);
        let mut image = first.to_vec();
        image.extend(encoder.append(piece).unwrap().concat());
        let (last, end) = encoder.finish(Totals::default()).unwrap();
        image.extend(last.concat());
        fs::write(path, image).unwrap();
        ParentRecord {
            frozen: header.frozen,
            root: end.root,
        }
    }

    /// An image of an export, of the frozen image with a number, of which the host said so.
    pub(crate) fn write_described(path: &Path, export: &str, frozen: u128, description: &str) {
        let header = Header {
            volume: export.to_owned(),
            description: description.to_owned(),
            ..header(frozen, None)
        };
        write_with(path, &header);
    }

    /// The longest chain that is not continued, as `1.vbi` and so on, each of the frozen image with its number: their count.
    pub(crate) fn write_longest_chain(directory: &Path) -> usize {
        let mut parent = None;
        for number in 1..=CONTINUED_MAX {
            let path = directory.join(format!("{number}.vbi"));
            parent = Some(write(&path, number as u128, parent));
        }
        CONTINUED_MAX
    }

    #[test]
    fn a_chain_is_not_continued_to_where_it_could_not_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |number: usize| directory.path().join(format!("{number}.vbi"));
        write_longest_chain(directory.path());
        assert_eq!(
            find_continued(&path(CONTINUED_MAX - 1)).unwrap().len(),
            CONTINUED_MAX - 1
        );
        let error = find_continued(&path(CONTINUED_MAX)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LineageBroken);
        // What is there is read all the same.
        let whole = find_parents(&path(CONTINUED_MAX), &[]).unwrap();
        assert_eq!(whole.len(), CONTINUED_MAX);
        Chain::open(&whole).unwrap().check().unwrap();
    }

    #[test]
    fn an_unfinished_image_finds_the_chain_beside_its_parent() {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name: &str| there.path().join(name);
        let mon = write(&path("mon.vbi"), 1, None);
        let tue = write(&path("tue.vbi"), 2, Some(mon));
        let unfinished = header(3, Some(tue));
        let image = here.path().join("wed.vbi");
        let find = |named: &[PathBuf]| find_parents_of_unfinished(&image, &unfinished, named);
        let both = [path("tue.vbi"), path("mon.vbi")];
        assert_eq!(find(&both[..1]).unwrap(), both);
        assert_eq!(find(&[]).unwrap_err().kind(), ErrorKind::ImageBad);
        // Beside the image itself as well.
        let moved = here.path().join("mon.vbi");
        fs::rename(&both[1], &moved).unwrap();
        assert_eq!(find(&both[..1]).unwrap(), [both[0].clone(), moved]);
    }

    /// `mon.img`, say, that `tue.vbi` continues.
    #[test]
    fn a_parent_of_another_ending_is_found_by_the_name_that_it_had() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mon = write(&path("mon.img"), 1, None);
        let mut second = header(2, Some(mon));
        let job = |parent: &str| crate::image::JobRecord {
            uri: "nbd://host/vm".into(),
            require_direct: None,
            audit_percent: 0.0,
            no_fallback: false,
            luns: Vec::new(),
            distrusted: Vec::new(),
            parent: Some(parent.into()),
            bitmap: None,
        };
        // Wherever it was.
        second.job = Some(job("/elsewhere/then/mon.img"));
        let tue = write_with(&path("tue.vbi"), &second);
        let both = [path("tue.vbi"), path("mon.img")];
        assert_eq!(find_continued(&both[0]).unwrap(), both);
        assert_eq!(find_parents(&both[0], &[]).unwrap(), both);

        let mut unfinished = header(3, Some(tue));
        unfinished.job = Some(job("/elsewhere/then/tue.vbi"));
        let found = find_parents_of_unfinished(&path("wed.other"), &unfinished, &[]).unwrap();
        assert_eq!(found, both);

        // Another image of the name is not the parent.
        write(&path("mon.img"), 7, None);
        let error = find_continued(&both[0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageBad);
    }
}
