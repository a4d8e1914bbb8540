//! What a host tells of its disks in the description of a frozen export (docs/x-volmap.md, "Description"), and what a LUN is held
//! against: the size and the block size that belong to its name.

use volmap::identity::{IDENTITY_MAX, Identity};

use super::limits::DISKS_TOLD_MAX;
use crate::transport::direct::{Geometry, Lun};

const KEY: &str = "disk=";

/// Longest word of a disk: an identity, two numbers of 64 bits, two slashes.
const WORD_MAX: usize = KEY.len() + IDENTITY_MAX + 2 * (1 + 20);

/// What a description tells of one disk. Words that cannot be read tell nothing.
pub(crate) fn told(description: &str, disk: &Identity) -> Vec<Geometry> {
    let words = description.split_ascii_whitespace();
    let words = words.filter(|word| word.len() <= WORD_MAX);
    let mut told: Vec<Geometry> = words
        .filter_map(|word| word.strip_prefix(KEY))
        .take(DISKS_TOLD_MAX)
        .filter_map(parse)
        .filter(|(identity, _)| identity == disk)
        .map(|(_, geometry)| geometry)
        .collect();
    told.dedup();
    told
}

/// `IDENTITY/SIZE[/BLOCK]`. An identity holds no slash: it is percent-encoded.
fn parse(word: &str) -> Option<(Identity, Geometry)> {
    let (identity, numbers) = word.split_once('/')?;
    let (size, block_size) = match numbers.split_once('/') {
        Some((size, block)) => (size, Some(number(block)?)),
        None => (numbers, None),
    };
    let size = number(size)?;
    block_size.is_none_or(u64::is_power_of_two).then_some(())?;
    Some((identity.parse().ok()?, Geometry { size, block_size }))
}

/// Digits alone: what else the standard library takes for a number is none here.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// Why a LUN is another disk than what was told of, by whatever path. A path that differs where another does not is given up.
pub(super) fn is_another(lun: &Lun, told: &[Geometry]) -> Option<String> {
    let (mut differing, mut others) = (Vec::new(), 0);
    for path in lun.paths().iter().filter(|path| path.given_up().is_none()) {
        match path.geometry().and_then(|found| difference(told, found)) {
            Some(why) => differing.push((path, why)),
            None => others += 1,
        }
    }
    if others == 0 {
        return differing.pop().map(|(_, why)| why);
    }
    for (path, why) in differing {
        path.give_up(&why);
    }
    None
}

/// Why what was found is not the disk that was told of.
fn difference(told: &[Geometry], found: Geometry) -> Option<String> {
    told.iter().find_map(|told| differs(*told, found))
}

fn differs(told: Geometry, found: Geometry) -> Option<String> {
    if let (Some(told), Some(found)) = (told.block_size, found.block_size)
        && told != found
    {
        return Some(format!(
            "the LUN has blocks of {found} bytes here, and of {told} on the host: it is another disk, or it is presented with another \
             block size; a tag could prove it"
        ));
    }
    // A device on a file has the whole blocks of it.
    let unit = match (told.block_size, found.block_size) {
        (Some(block), None) | (None, Some(block)) => block,
        _ => 1,
    };
    let blocks = |size: u64| size.checked_div(unit);
    (blocks(told.size) != blocks(found.size)).then(|| {
        format!(
            "the LUN has {} bytes here, and {} on the host: it is another disk, or it was resized and one side does not know yet (rescan \
             it there); a tag could prove it",
            found.size, told.size
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::source::map_whole;
    use super::super::world::World;
    use super::super::{FrozenSource, Luns};
    use super::*;

    use bytes::Bytes;
    use volmap::range::ByteRange;

    use crate::error::Result;
    use crate::plan::mapped::MappedExtent;
    use crate::transport::direct::LunReader;

    fn geometry(size: u64, block_size: Option<u64>) -> Geometry {
        Geometry { size, block_size }
    }

    #[test]
    fn a_word_is_of_one_disk_and_what_cannot_be_read_tells_nothing() {
        let disk = Identity::new("serial", "a b/c").unwrap();
        let told = |text: &str| told(&format!("frozen image: method=cow {text} set=x"), &disk);
        assert_eq!(told("disk=serial:a%20b%2Fc/4096"), [geometry(4096, None)]);
        let of_several = "disk=id:lun0/1/512 disk=serial:a%20b%2Fc/8192/512 disk=id:b/2";
        assert_eq!(told(of_several), [geometry(8192, Some(512))]);
        for nothing in [
            "",
            "disk=id:lun0/4096/512",
            "disk=",
            "disk=serial:a%20b%2Fc",
            "disk=serial:a%20b%2Fc/",
            "disk=serial:a%20b%2fc/4096",
            "disk=serial:a b/c/4096",
            "disk=serial:a%20b%2Fc/+4096",
            "disk=serial:a%20b%2Fc/-1",
            "disk=serial:a%20b%2Fc/4096/0",
            "disk=serial:a%20b%2Fc/4096/513",
            "disk=serial:a%20b%2Fc/4096/512/1",
            "disk=serial:a%20b%2Fc/18446744073709551616",
            "Disk=serial:a%20b%2Fc/4096",
        ] {
            assert_eq!(told(nothing), [], "{nothing}");
        }
    }

    #[test]
    fn no_more_words_are_looked_at_than_a_host_may_tell() {
        let disk = Identity::new("id", "last").unwrap();
        for (others, known) in [(DISKS_TOLD_MAX - 1, true), (DISKS_TOLD_MAX, false)] {
            let mut text: String = (0..others).map(|nth| format!("disk=id:{nth}/1 ")).collect();
            text.push_str("disk=id:last/1");
            assert_eq!(!told(&text, &disk).is_empty(), known, "{others}");
        }
        let longest = Identity::new("id", &"x".repeat(IDENTITY_MAX - 3)).unwrap();
        let word = format!("disk={longest}/{}/{}", u64::MAX, 1_u64 << 63);
        assert_eq!(told(&word, &longest).len(), 1);
        assert_eq!(told(&format!("{word}/{}", "0".repeat(20)), &longest), []);
    }

    #[test]
    fn sizes_and_block_sizes_are_compared_where_both_sides_have_them() {
        for (told, found, same) in [
            ((8192, Some(512)), (8192, Some(512)), true),
            ((8192, Some(512)), (8192, Some(4096)), false),
            ((8192, Some(512)), (8704, Some(512)), false),
            ((8192, Some(512)), (8191, None), false),
            ((8192, Some(512)), (8192, None), true),
            // The last bytes of a file are no whole block.
            ((8192, Some(512)), (8703, None), true),
            ((8192, Some(512)), (8704, None), false),
            ((8703, None), (8192, Some(512)), true),
            ((8703, None), (8192, None), false),
            ((u64::MAX, None), (0, Some(1 << 63)), false),
        ] {
            let told = geometry(told.0, told.1);
            let found = geometry(found.0, found.1);
            assert_eq!(difference(&[told], found).is_none(), same, "{told:?} {found:?}");
        }
        assert_eq!(difference(&[], geometry(1, None)), None);
        // Who contradicts himself is not believed.
        let twice = [geometry(1, None), geometry(2, None)];
        assert!(difference(&twice, geometry(1, None)).is_some());
    }

    /// A host that tells of its disk, beside all else.
    struct Telling(World, Vec<Geometry>);

    impl FrozenSource for Telling {
        fn size(&self) -> u64 {
            FrozenSource::size(&self.0)
        }

        async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
            self.0.map(range).await
        }

        async fn generations(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
            self.0.generations(range).await
        }

        async fn read(&self, range: ByteRange) -> Result<Bytes> {
            FrozenSource::read(&self.0, range).await
        }

        async fn told_of(&self, _: &Identity) -> Vec<Geometry> {
            self.1.clone()
        }
    }

    /// A path to its disk.
    struct Found(World, u64);

    impl LunReader for Found {
        fn size(&self) -> u64 {
            LunReader::size(&self.0)
        }

        fn block_size(&self) -> u64 {
            self.0.block_size()
        }

        fn geometry(&self) -> Option<Geometry> {
            Some(geometry(LunReader::size(self), Some(self.1)))
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
            LunReader::read_at(&self.0, offset, buf)
        }
    }

    /// What becomes of a LUN with paths of these block sizes, of which the host tells one; and which paths are given up.
    async fn proven(told: u64, paths: &[u64], tagged: bool) -> (bool, Vec<bool>) {
        let world = World::new(&[false; 8], 100, Vec::new());
        let found = |nth: usize| Box::new(Found(world.clone(), paths[nth]));
        let mut lun = Lun::new(Identity::new("id", "l").unwrap(), "0".into(), found(0));
        for nth in 1..paths.len() {
            lun.also_by(nth.to_string().into(), found(nth)).unwrap();
        }
        let luns = Luns::new(vec![lun]);
        if tagged {
            luns.mark_tagged(0).await;
        }
        let size = LunReader::size(&world);
        let host = Telling(world, vec![geometry(size, Some(told))]);
        let map = map_whole(&host, ByteRange::new(0, FrozenSource::size(&host)).unwrap());
        let map = map.await.unwrap();
        let verdict = luns.prove(0, &host, &map).await.unwrap();
        // It is not asked anew each time.
        assert_eq!(luns.prove(0, &host, &map).await.unwrap(), verdict);
        assert_eq!(luns.proofs().await[0].sampled, verdict.is_ok());
        let given_up = luns.lun(0).paths().iter().map(|path| path.given_up().is_some());
        (verdict.is_ok(), given_up.collect())
    }

    #[tokio::test]
    async fn a_lun_is_refused_by_every_path_that_leads_to_another_disk() {
        assert_eq!(proven(512, &[512], false).await, (true, vec![false]));
        assert_eq!(proven(512, &[4096], false).await, (false, vec![false]));
        assert_eq!(proven(512, &[4096, 512], false).await, (true, vec![true, false]));
        assert_eq!(
            proven(512, &[4096, 4096], false).await,
            (false, vec![false, false])
        );
    }

    #[tokio::test]
    async fn what_a_tag_proved_may_have_another_size() {
        assert_eq!(proven(512, &[4096], true).await, (true, vec![false]));
    }
}
