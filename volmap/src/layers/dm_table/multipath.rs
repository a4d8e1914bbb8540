//! The paths of a `multipath` target.

use super::Words;
use crate::sys::DeviceNumber;

/// `FEATURES… HANDLER… GROUPS NEXT_GROUP`, and for each group `SELECTOR ARGUMENTS… PATHS PATH_ARGUMENTS (DEVICE ARGUMENT…)…`. Every
/// `…` but those of paths is counted.
pub(super) fn paths(words: &mut Words<'_>) -> Option<Vec<DeviceNumber>> {
    words.counted()?;
    words.counted()?;
    let groups = words.number()?;
    words.number()?;
    let mut paths = Vec::new();
    for _ in 0..groups {
        words.word()?;
        words.counted()?;
        let (count, arguments) = (words.number()?, words.number()?);
        for _ in 0..count {
            paths.push(words.device()?);
            for _ in 0..arguments {
                words.word()?;
            }
        }
    }
    (!paths.is_empty()).then_some(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_all_groups_are_found() {
        let minors = |text: &str| {
            let mut words = Words(text.split_whitespace());
            let paths = paths(&mut words)?;
            let minors: Vec<u32> = paths.iter().map(|path| path.minor).collect();
            words.word().is_none().then_some(minors)
        };
        let table = "3 queue_if_no_path queue_mode mq 1 alua 2 1 service-time 0 2 2 8:32 1 1 8:64 1 1 service-time 0 1 2 8:48 1 1";
        assert_eq!(minors(table), Some(vec![32, 64, 48]));
        assert_eq!(minors("0 0 1 1 round-robin 0 1 1 8:16 1000"), Some(vec![16]));
        assert_eq!(minors("0 0 0 0"), None);
        assert_eq!(minors("0 0 1 1 round-robin 0 2 1 8:16 1000"), None);
    }
}
