//! Mirrors: `mirror`, and `raid` of level 1. The same bytes are on every leg, as long as the target says that all are in sync.

use super::{Leg, TableError, Words};

/// The legs of a mirror.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::layers) struct Mirror {
    /// Any one of them has all the bytes, if the status says so.
    pub(in crate::layers) legs: Vec<Leg>,
    reports: Reports,
}

/// Which of the two forms its status has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reports {
    /// `mirror`
    Mirror,
    /// `raid`
    Raid,
}

impl Mirror {
    /// Whether a status, as the target tells it, says that every leg has all the bytes. The same text has to stand for as long as a
    /// leg is read.
    ///
    /// # Errors
    /// Why not.
    pub(in crate::layers) fn in_sync(&self, status: &str) -> Result<(), &'static str> {
        let mut words = Words(status.split_whitespace());
        let told = match self.reports {
            Reports::Mirror => self.mirror_health(&mut words),
            Reports::Raid => self.raid_health(&mut words),
        };
        told.unwrap_or(Err("its status cannot be read"))
    }

    /// `LEGS DEVICE… SYNCED/REGIONS 1 HEALTH …`
    fn mirror_health(&self, words: &mut Words<'_>) -> Option<Result<(), &'static str>> {
        let devices = words.counted()?;
        let ratio = words.word()?;
        let [health] = words.counted()?[..] else {
            return None;
        };
        Some(self.judge(devices.len(), ratio, health))
    }

    /// `raid1 LEGS HEALTH SYNCED/SECTORS ACTION MISMATCHES DATA_OFFSET …`
    fn raid_health(&self, words: &mut Words<'_>) -> Option<Result<(), &'static str>> {
        if words.word()? != "raid1" {
            return None;
        }
        let legs = usize::try_from(words.number()?).ok()?;
        let (health, ratio) = (words.word()?, words.word()?);
        let (action, mismatches, data_offset) = (words.word()?, words.number()?, words.number()?);
        Some(if action != "idle" {
            Err("it is being synchronised or checked")
        } else if mismatches != 0 {
            Err("a check of it found legs that differ")
        } else if data_offset != 0 {
            Err("its data begins at an offset")
        } else {
            self.judge(legs, ratio, health)
        })
    }

    fn judge(&self, legs: usize, ratio: &str, health: &str) -> Result<(), &'static str> {
        let whole = ratio
            .split_once('/')
            .is_some_and(|(synced, all)| synced == all && synced.parse::<u64>().is_ok_and(|n| n > 0));
        if legs != self.legs.len() || health.len() != legs {
            Err("its status is of another number of legs")
        } else if health.bytes().any(|leg| leg != b'A') {
            Err("not all of its legs are alive")
        } else if !whole {
            Err("its legs are not in sync yet")
        } else {
            Ok(())
        }
    }
}

/// `LOG ARGUMENTS… LEGS (DEVICE OFFSET)… [FEATURES…]`. `None` where it cannot be read.
pub(super) fn of_mirror(words: &mut Words<'_>) -> Result<Option<Mirror>, TableError> {
    let Some((log, arguments)) = words.word().zip(words.counted()) else {
        return Ok(None);
    };
    if !["core", "disk"].contains(&log) {
        return Err(TableError::Mirror(
            "other machines write to it, too (clustered log)",
        ));
    }
    if arguments.contains(&"nosync") {
        return Err(TableError::Mirror(
            "it was made without a first synchronisation (nosync)",
        ));
    }
    let Some(legs) = words
        .number()
        .and_then(|count| (0..count).map(|_| words.leg()).collect::<Option<Vec<_>>>())
    else {
        return Ok(None);
    };
    // `handle_errors`, `keep_log`: what is done about a failed leg; the status tells of it in any case.
    let features = words.0.clone().next().is_none() || words.counted().is_some();
    Ok((features && !legs.is_empty()).then_some(Mirror {
        legs,
        reports: Reports::Mirror,
    }))
}

/// `LEVEL PARAMETERS… LEGS (METADATA DATA)…`, a device or a hyphen each. `None` where it cannot be read.
pub(super) fn of_raid(words: &mut Words<'_>) -> Result<Option<Mirror>, TableError> {
    if words.word() != Some("raid1") {
        return Err(TableError::Target("raid".into()));
    }
    let Some(parameters) = words.counted() else {
        return Ok(None);
    };
    let mut parameters = parameters.into_iter();
    // Of a chunk size, which means nothing at this level.
    parameters.next();
    while let Some(parameter) = parameters.next() {
        match parameter {
            "sync" => {}
            "region_size" | "daemon_sleep" | "min_recovery_rate" | "max_recovery_rate" => {
                parameters.next();
            }
            "nosync" => {
                return Err(TableError::Mirror(
                    "it was made without a first synchronisation (nosync)",
                ));
            }
            "write_mostly" | "max_write_behind" => {
                return Err(TableError::Mirror(
                    "one leg is written later than another (write-behind)",
                ));
            }
            _ => {
                return Err(TableError::Mirror(
                    "it is being rebuilt or reshaped, or has options that are not understood",
                ));
            }
        }
    }
    let Some(count) = words.number() else {
        return Ok(None);
    };
    let mut legs = Vec::new();
    for _ in 0..count {
        let (Some(_metadata), Some(data)) = (words.word(), words.word()) else {
            return Ok(None);
        };
        if data == "-" {
            return Err(TableError::Mirror("one of its legs is missing"));
        }
        let Some(device) = crate::sys::DeviceNumber::parse(data) else {
            return Ok(None);
        };
        legs.push(Leg { device, offset: 0 });
    }
    Ok((!legs.is_empty()).then_some(Mirror {
        legs,
        reports: Reports::Raid,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::super::{Layout, targets};
    use super::*;

    fn mirror(kind: &str, parameters: &str) -> Result<Mirror, TableError> {
        let mut targets = targets(&[line(0, 2048, kind, parameters)])?;
        match targets.remove(0).layout {
            Layout::Mirror(mirror) => Ok(mirror),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mirror_is_followed_only_while_every_leg_is_whole() {
        let mirror = mirror("mirror", "disk 2 253:1 1024 2 253:2 0 253:3 8 1 handle_errors").unwrap();
        assert_eq!(mirror.legs.len(), 2);
        assert_eq!(mirror.legs[1].offset, 4096);
        assert_eq!(mirror.in_sync("2 253:2 253:3 16/16 1 AA 3 disk 253:1 A"), Ok(()));
        for status in [
            "2 253:2 253:3 15/16 1 AA 3 disk 253:1 A",
            "2 253:2 253:3 16/16 1 AD 3 disk 253:1 A",
            "2 253:2 253:3 16/16 1 RA 3 disk 253:1 A",
            "3 253:2 253:3 253:4 16/16 1 AAA 3 disk 253:1 A",
            "2 253:2 253:3 0/0 1 AA 3 disk 253:1 A",
            "2 253:2 253:3",
            "",
        ] {
            assert!(mirror.in_sync(status).is_err(), "{status}");
        }
    }

    #[test]
    fn mirrors_that_never_were_in_sync_are_refused() {
        for parameters in [
            "core 2 1024 nosync 2 253:2 0 253:3 0",
            "clustered-disk 2 253:1 1024 2 253:2 0 253:3 0",
        ] {
            assert!(
                matches!(mirror("mirror", parameters), Err(TableError::Mirror(_))),
                "{parameters}"
            );
        }
        assert!(mirror("mirror", "core 1 1024 2 253:2 0 253:3 0").is_ok());
    }

    #[test]
    fn raid_of_level_1_is_followed_while_idle() {
        let mirror = mirror("raid", "raid1 3 0 region_size 4096 2 253:0 253:1 253:2 253:3").unwrap();
        let minors: Vec<u32> = mirror.legs.iter().map(|leg| leg.device.minor).collect();
        assert_eq!(minors, [1, 3]);
        assert_eq!(mirror.in_sync("raid1 2 AA 2097152/2097152 idle 0 0 -"), Ok(()));
        for status in [
            "raid1 2 Aa 2097152/2097152 idle 0 0 -",
            "raid1 2 AD 2097152/2097152 idle 0 0 -",
            "raid1 2 AA 4096/2097152 resync 0 0 -",
            "raid1 2 AA 2097152/2097152 repair 0 0 -",
            "raid1 2 AA 2097152/2097152 idle 8 0 -",
            "raid1 2 AA 2097152/2097152 idle 0 2048 -",
            "raid10 2 AA 2097152/2097152 idle 0 0 -",
        ] {
            assert!(mirror.in_sync(status).is_err(), "{status}");
        }
    }

    #[test]
    fn other_raids_and_unknown_options_are_refused() {
        for parameters in [
            "raid1 5 0 region_size 4096 write_mostly 1 2 253:0 253:1 253:2 253:3",
            "raid1 3 0 rebuild 1 2 253:0 253:1 253:2 253:3",
            "raid1 3 0 data_offset 2048 2 253:0 253:1 253:2 253:3",
            "raid1 2 0 nosync 2 253:0 253:1 253:2 253:3",
            "raid1 1 0 2 253:0 253:1 - -",
        ] {
            assert!(
                matches!(mirror("raid", parameters), Err(TableError::Mirror(_))),
                "{parameters}"
            );
        }
        let parity = mirror("raid", "raid5_ls 1 128 3 - 253:1 - 253:2 - 253:3");
        assert_eq!(parity, Err(TableError::Target("raid".into())));
    }
}
