//! The log on the LUN: areas, torn reads, and what is not believed.

use std::io;

use super::model::{CHUNK, World};
use super::schedule::Nobody;
use crate::frozen::lvm_snapshot::exception_store::{Geometry, StoreError};
use crate::frozen::lvm_snapshot::image::Snapshot;
use crate::frozen::lvm_snapshot::table::Sample;
use crate::limits::COPY_UNIT;

fn geometry() -> Geometry {
    Geometry::new(CHUNK / 512).unwrap()
}

fn read_all(world: &World) -> Vec<u64> {
    let mut read = |offset: u64, buf: &mut [u8]| world.read_store(offset, buf);
    geometry().read_log(0, u64::MAX, &mut read).unwrap()
}

#[test]
fn the_log_goes_on_in_the_next_area() {
    let world = World::new(600, 640, Box::new(Nobody));
    let mut written = Vec::new();
    for index in 0..520u64 {
        let Sample::Allocated(allocated) = world.sample().unwrap() else {
            panic!("lost")
        };
        assert_eq!(geometry().begun(allocated), Ok(index));
        let chunk = index * 7 % 600;
        world.write(chunk);
        written.push(chunk);
        if index % 32 < 2 || (250..260).contains(&index) {
            assert_eq!(read_all(&world), written, "after {index}");
        }
    }
    assert_eq!(read_all(&world), written);
    // From any entry on, and no further than is wanted.
    let mut read = |offset: u64, buf: &mut [u8]| world.read_store(offset, buf);
    for first in [1u64, 255, 256, 257, 511, 512, 519, 520] {
        let tail = geometry().read_log(first, 520, &mut read).unwrap();
        assert_eq!(tail, written[usize::try_from(first).unwrap()..]);
    }
    assert!(geometry().read_log(3, 3, &mut read).unwrap().is_empty());
}

#[test]
fn a_store_for_all_of_a_volume_is_never_too_small() {
    for chunks in [1u64, 255, 256, 257, 512] {
        let store = geometry().size_for(chunks * CHUNK) / CHUNK;
        let world = World::new(chunks, store, Box::new(Nobody));
        for chunk in 0..chunks {
            world.write(chunk);
        }
        assert!(matches!(world.sample(), Ok(Sample::Allocated(_))), "{chunks}");
        assert_eq!(read_all(&world).len() as u64, chunks);
    }
}

#[test]
fn the_place_of_every_entry_is_that_of_the_kernel() {
    // LVM's largest chunks that we ask for: 4096 entries an area.
    let geometry = Geometry::new(COPY_UNIT / 512).unwrap();
    assert_eq!((geometry.entry_offset(0), geometry.data_chunk(0)), (65_536, 2));
    assert_eq!(
        (geometry.entry_offset(4095), geometry.data_chunk(4095)),
        (2 * 65_536 - 16, 4097)
    );
    assert_eq!(
        (geometry.entry_offset(4096), geometry.data_chunk(4096)),
        (4098 * 65_536, 4099)
    );
    // Observed: 256/N after activation, 128 more for every chunk.
    assert_eq!(geometry.begun(256), Ok(0));
    assert_eq!(geometry.begun(384), Ok(1));
    assert_eq!(geometry.begun(128 * 4097), Ok(4095));
    assert_eq!(geometry.begun(128 * 4099), Ok(4096));
    for never in [0, 128, 255, 257, 128 * 4098, u64::MAX] {
        assert_eq!(geometry.begun(never), Err(StoreError::Status), "{never}");
    }
}

#[test]
fn a_chunk_size_is_a_power_of_two_within_bounds() {
    for (sectors, fits) in [
        (0, false),
        (4, false),
        (8, true),
        (12, false),
        (1024, true),
        (32_768, true),
        (65_536, false),
        (u64::MAX, false),
    ] {
        assert_eq!(Geometry::new(sectors).is_some(), fits, "{sectors}");
    }
}

#[test]
fn a_header_that_is_not_the_stores_is_refused() {
    let header = |words: [u32; 4]| words.map(u32::to_le_bytes).concat();
    let check = |bytes: &[u8]| geometry().check_header(bytes);
    assert_eq!(check(&header([0x7041_6e53, 1, 1, 8])), Ok(()));
    assert_eq!(check(&header([0x7041_6e53, 0, 1, 8])), Err(StoreError::Invalid));
    assert_eq!(check(&header([0x7041_6e53, 1, 2, 8])), Err(StoreError::Header));
    assert_eq!(check(&header([0, 1, 1, 8])), Err(StoreError::Header));
    assert_eq!(
        check(&header([0x7041_6e53, 1, 1, 128])),
        Err(StoreError::ChunkSize)
    );
    for len in 0..16 {
        assert_eq!(
            check(&header([0x7041_6e53, 1, 1, 8])[..len]),
            Err(StoreError::Header)
        );
    }
}

/// A store of entries from index 0 on, as (old, new).
fn log_of(entries: &[(u64, u64)]) -> Vec<u8> {
    let mut area: Vec<u8> = entries
        .iter()
        .flat_map(|(old, new)| [old.to_le_bytes(), new.to_le_bytes()].concat())
        .collect();
    area.resize(4096, 0);
    area
}

fn read_log_of(reads: &mut dyn Iterator<Item = Vec<u8>>) -> Vec<u64> {
    let mut read = |_: u64, buf: &mut [u8]| -> io::Result<()> {
        let area = reads.next().ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(&area[..buf.len()]);
        Ok(())
    };
    geometry().read_log(0, u64::MAX, &mut read).unwrap()
}

#[test]
fn what_is_out_of_order_ends_the_log() {
    for (entries, known) in [
        (vec![(9, 2), (7, 3), (5, 0), (3, 5)], vec![9, 7]),
        (vec![(9, 2), (7, 4)], vec![9]),
        (vec![(9, 2), (7, 3), (5, 1)], vec![9, 7]),
        (vec![(9, u64::MAX)], vec![]),
        (vec![(0, 2)], vec![0]),
    ] {
        let area = log_of(&entries);
        assert_eq!(read_log_of(&mut std::iter::repeat(area)), known, "{entries:?}");
    }
}

#[test]
fn an_entry_that_two_reads_do_not_agree_on_is_not_believed() {
    let (torn, whole) = (log_of(&[(9, 2), (0, 3)]), log_of(&[(9, 2), (7, 3)]));
    assert_eq!(read_log_of(&mut [torn, whole].into_iter()), [9]);
}
