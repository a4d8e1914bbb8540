//! Whether a pool has room for what a thin snapshot will cost it. The snapshot itself takes none, but whatever its origin overwrites from
//! then on gets new blocks, and a pool that is full stops all of its writers. So one that is nearly full is not frozen in at all.

use std::io;
use std::sync::Arc;

use super::pool::{LivePool, Pool, PoolError};
use super::target::{PoolMode, PoolStatus, PoolTarget, TargetError, ThinTarget};
use crate::limits::{POOL_DATA_SPARE, POOL_METADATA_SPARE, POOL_NEARLY_FULL_PERCENT};
use crate::lvm::LogicalVolume;
use crate::sys::device_mapper::Control;

/// Whether the pool of a thin volume can take what a snapshot costs; `Some`: it can, and what an operator should know all the same.
///
/// # Errors
/// Why not, and what can be done about it.
pub(crate) fn check(volume: &LogicalVolume) -> Result<Option<String>, String> {
    let Some(device) = volume.device else {
        return Err(format!("it is not active (lvchange -ay {})", volume.name));
    };
    let pool = volume.pool.as_deref().unwrap_or("its thin pool");
    let pool = format!("{}/{pool}", volume.name.group());
    let unreadable = |error: io::Error| format!("the state of its thin pool {pool} cannot be read: {error}");
    let control = Arc::new(Control::open().map_err(unreadable)?);
    let table = control.table(device).map_err(unreadable)?;
    let (target, _) = ThinTarget::parse_any(&table).map_err(|why| why.to_string())?;
    let table = control.table(target.pool).map_err(unreadable)?;
    let block_size = PoolTarget::parse(&table)
        .map_err(|why| why.to_string())?
        .data_block_size;
    let live = LivePool::new(Arc::clone(&control), target.pool).map_err(unreadable)?;
    match live.status() {
        Ok(status) => judge(&status, block_size, &pool),
        Err(PoolError::Target(TargetError::Failed)) => Err(format!(
            "the metadata of its thin pool {pool} has failed: deactivate the pool and repair it (lvconvert --repair {pool})"
        )),
        Err(error) => Err(format!(
            "the state of its thin pool {pool} cannot be read: {error}"
        )),
    }
}

fn judge(status: &PoolStatus, block_size: u64, pool: &str) -> Result<Option<String>, String> {
    if status.mode == PoolMode::ReadOnly || status.needs_check {
        let why = status.doubt().unwrap_or("its thin pool is in trouble");
        return Err(format!(
            "{why}: deactivate the pool and repair it (lvconvert --repair {pool})"
        ));
    }
    let metadata_free = status.metadata_blocks.saturating_sub(status.metadata_used);
    if metadata_free < POOL_METADATA_SPARE.min(status.metadata_blocks / 10) {
        return Err(format!(
            "the metadata of its thin pool {pool} is nearly full ({metadata_free} of {} blocks are free), and goes read-only when it is: \
             extend it (lvextend --poolmetadatasize +SIZE {pool})",
            status.metadata_blocks
        ));
    }
    let data_free = status.data_blocks.saturating_sub(status.data_used);
    let spare = (POOL_DATA_SPARE / block_size.max(1)).min(status.data_blocks / 20);
    if status.mode == PoolMode::OutOfDataSpace || data_free < spare {
        let writers = if status.errors_if_full {
            "get errors"
        } else {
            "are stopped"
        };
        return Err(format!(
            "its thin pool {pool} is nearly full ({} bytes are free), and writers {writers} when it is, which a snapshot would bring about: \
             extend it (lvextend -L +SIZE {pool}), or remove what is not needed (fstrim, lvremove)",
            data_free.saturating_mul(block_size)
        ));
    }
    let percent = |used: u64, total: u64| used.saturating_mul(100) / total.max(1);
    let data = percent(status.data_used, status.data_blocks);
    let metadata = percent(status.metadata_used, status.metadata_blocks);
    Ok((data.max(metadata) >= POOL_NEARLY_FULL_PERCENT).then(|| {
        format!(
            "its thin pool {pool} is {data}% full, its metadata {metadata}%, and what is overwritten while the frozen image lives makes it \
             fuller: watch it, or extend it (lvextend)"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BLOCK: u64 = 64 << 10;

    /// A pool of 16 GiB with 40 MiB of metadata.
    fn pool() -> PoolStatus {
        PoolStatus {
            data_blocks: 16 << 30 >> 16,
            data_used: 1000,
            metadata_blocks: 10_240,
            metadata_used: 100,
            errors_if_full: false,
            held_root: None,
            mode: PoolMode::Writable,
            needs_check: false,
        }
    }

    fn refused(status: &PoolStatus) -> String {
        judge(status, BLOCK, "vg/pool").unwrap_err()
    }

    #[test]
    fn a_pool_with_room_is_taken() {
        assert_eq!(judge(&pool(), BLOCK, "vg/pool"), Ok(None));
        let mut full = pool();
        full.data_used = (full.data_blocks * 9).div_ceil(10);
        let remark = judge(&full, BLOCK, "vg/pool").unwrap().unwrap();
        assert!(remark.contains("90%") && remark.contains("lvextend"), "{remark}");
    }

    #[test]
    fn one_that_is_nearly_full_is_refused_at_the_limit() {
        let mut status = pool();
        status.data_used = status.data_blocks - 64 * MIB / BLOCK;
        assert!(judge(&status, BLOCK, "vg/pool").unwrap().is_some());
        status.data_used += 1;
        assert!(refused(&status).contains("are stopped"));
        status.errors_if_full = true;
        assert!(refused(&status).contains("get errors"));
        let mut status = pool();
        status.metadata_used = status.metadata_blocks - POOL_METADATA_SPARE;
        assert!(judge(&status, BLOCK, "vg/pool").unwrap().is_some());
        status.metadata_used += 1;
        assert!(refused(&status).contains("--poolmetadatasize"));
        // Of a small pool a share is enough.
        let mut small = pool();
        (small.data_blocks, small.data_used) = (1000, 950);
        (small.metadata_blocks, small.metadata_used) = (1000, 900);
        assert!(judge(&small, BLOCK, "vg/pool").is_ok());
        small.data_used += 1;
        assert!(judge(&small, BLOCK, "vg/pool").is_err());
    }

    #[test]
    fn one_in_trouble_is_refused_whatever_room_it_has() {
        for (mode, needs_check) in [
            (PoolMode::ReadOnly, false),
            (PoolMode::Writable, true),
            (PoolMode::OutOfDataSpace, false),
        ] {
            let status = PoolStatus {
                mode,
                needs_check,
                ..pool()
            };
            assert!(refused(&status).contains("(lv"), "{mode:?}");
        }
    }
}
