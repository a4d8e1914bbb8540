//! The manifest of a set whose images were made one by one, by jobs of their own.

use std::path::PathBuf;

use super::backup::{volume_of, word};
use super::manifest::{SetImage, SetManifest};
use crate::error::Result;
use crate::image::{End, Header};
use crate::image_source::ImageSource;

/// An image that may be of a set.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// The file, as the manifest is to name it.
    pub(crate) file: String,
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// What an image says of the set that it is of. A name alone is no instant: the host may give it again.
#[derive(PartialEq, Eq, Debug)]
struct Instant {
    set: String,
    members: usize,
    frozen_at: String,
    /// How long writers were held.
    window_ms: String,
}

impl Instant {
    /// `None`: it is of no set, or does not say of which instant.
    fn told_by(header: &Header) -> Option<Self> {
        let told = |key| word(&header.description, key);
        Some(Self {
            set: told("set")?.to_owned(),
            members: told("set-members")?.parse().ok()?,
            frozen_at: told("frozen-at")?.to_owned(),
            window_ms: told("set-window-ms")?.to_owned(),
        })
    }
}

/// An image of the set, if it says what frozen image it is of. Which volume that is, the image says too: jobs may call it anything.
fn image_of(candidate: Candidate, header: &Header, end: &End) -> Option<SetImage> {
    let image = SetImage::new(volume_of(&header.volume), candidate.file, header, end);
    image.frozen.is_some().then_some(image)
}

/// The manifest of the set that the first of these images is of; `None` where it is of none, or not every volume of the set has an image of
/// the same instant among the others. Of a volume that has several the first counts.
///
/// # Errors
/// The first image cannot be read.
pub(crate) fn collect(candidates: impl IntoIterator<Item = Candidate>) -> Result<Option<SetManifest>> {
    let mut candidates = candidates.into_iter();
    let outline = |candidate: &Candidate| ImageSource::open(&candidate.path)?.outline();
    let Some(first) = candidates.next() else {
        return Ok(None);
    };
    let (header, end) = outline(&first)?;
    let Some(instant) = Instant::told_by(&header) else {
        return Ok(None);
    };
    let mut images: Vec<SetImage> = image_of(first, &header, &end).into_iter().collect();
    for candidate in candidates {
        match outline(&candidate) {
            Ok((header, end)) if Instant::told_by(&header).as_ref() == Some(&instant) => {
                let is_new = |image: &SetImage| {
                    let known =
                        |other: &SetImage| other.volume == image.volume || other.frozen == image.frozen;
                    !images.iter().any(known)
                };
                images.extend(image_of(candidate, &header, &end).filter(is_new));
            }
            Ok(_) => {}
            // Somebody took it away, say: then it is not there for the set.
            Err(error) => tracing::debug!(%error, "no image of a set"),
        }
    }
    if images.len() != instant.members {
        tracing::info!(
            set = instant.set,
            members = instant.members,
            images = images.len(),
            "not every volume has its image yet"
        );
        return Ok(None);
    }
    images.sort_by(|one, other| one.volume.cmp(&other.volume));
    Ok(Some(SetManifest::new(
        Some(instant.set),
        Some(instant.frozen_at),
        images,
    )))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::chain::write_described;

    fn told(members: usize, frozen_at: &str, window: u32) -> String {
        format!("frozen image: frozen-at={frozen_at} set=db@1 set-members={members} set-window-ms={window}")
    }

    /// The volumes, and whose files they are, of what these images come to: export, number of the frozen image, and what is told.
    fn collected(images: &[(&str, u128, String)]) -> Option<Vec<(String, String)>> {
        let directory = TempDir::new().unwrap();
        let candidates = images
            .iter()
            .enumerate()
            .map(|(index, (export, frozen, description))| {
                let file = format!("{index}.vbi");
                let path = directory.path().join(&file);
                write_described(&path, export, *frozen, description);
                Candidate { file, path }
            });
        let manifest = collect(candidates).unwrap()?;
        assert_eq!(manifest.set.as_deref(), Some("db@1"));
        let images = manifest.images.into_iter();
        Some(images.map(|image| (image.volume, image.file)).collect())
    }

    #[test]
    fn a_set_is_what_says_that_it_is_of_one_instant_and_no_less() {
        let (then, before) = (|| told(2, "then", 7), || told(2, "before", 7));
        let (a, b) = (|| ("a@1", 1, then()), || ("b@1", 2, then()));
        let both =
            [("a", "1.vbi"), ("b", "0.vbi")].map(|(volume, file)| (volume.to_owned(), file.to_owned()));
        assert_eq!(collected(&[b(), a()]), Some(both.to_vec()));
        assert_eq!(
            collected(&[b(), a(), a(), ("b@1", 3, before())]),
            Some(both.to_vec()),
            "of each volume the first"
        );
        for no_set in [
            vec![b()],
            vec![b(), b()],
            vec![b(), ("a@1", 1, before())],
            vec![b(), ("a@1", 1, told(2, "then", 8))],
            vec![b(), ("a@1", 1, told(3, "then", 7))],
            vec![("b@1", 2, told(3, "then", 7)), ("a@1", 1, told(3, "then", 7))],
            // One frozen image under two names, and one that nobody froze.
            vec![b(), ("a@1", 2, then())],
            vec![b(), ("a@1", 0, then())],
            vec![("b@1", 2, String::new()), a()],
            vec![],
        ] {
            assert_eq!(collected(&no_set), None, "{no_set:?}");
        }
    }

    #[test]
    fn what_was_taken_away_is_not_there_for_the_set() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("b.vbi");
        write_described(&path, "b@1", 2, &told(2, "then", 7));
        let of = |path: PathBuf| Candidate {
            file: String::new(),
            path,
        };
        let gone = directory.path().join("a.vbi");
        assert!(collect([of(path.clone()), of(gone.clone())]).unwrap().is_none());
        assert!(collect([of(gone), of(path)]).is_err());
    }
}
