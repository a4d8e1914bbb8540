//! thin-provisioning-tools as the judge: metadata by `thin_restore`, the map by `thin_dump`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::super::{PoolGeometry, Run, ThinMap};
use super::Memory;
use crate::frozen::ChangedMap;
use crate::frozen::lvm_thin::locate::extents;
use crate::frozen::same_places::same;

const GEOMETRY: PoolGeometry = PoolGeometry {
    data_block_size: 64 << 10,
    data_blocks: 100_000,
};

/// Runs of device `id` in what `thin_dump` prints.
fn dumped(xml: &str) -> Vec<Run> {
    let number = |line: &str, name: &str| -> Option<u64> {
        let (_, rest) = line.split_once(&format!(" {name}=\""))?;
        rest.split('"').next()?.parse().ok()
    };
    let mut runs: Vec<Run> = Vec::new();
    for line in xml.lines() {
        let run = if line.contains("<single_mapping") {
            (number(line, "origin_block"), number(line, "data_block"), Some(1))
        } else if line.contains("<range_mapping") {
            (
                number(line, "origin_begin"),
                number(line, "data_begin"),
                number(line, "length"),
            )
        } else {
            continue;
        };
        let (thin, data, len) = (run.0.unwrap(), run.1.unwrap(), run.2.unwrap());
        match runs.last_mut() {
            // The tool begins a new line where the time changes, too.
            Some(last) if last.thin + last.len == thin && last.data + last.len == data => last.len += len,
            _ => runs.push(Run { thin, data, len }),
        }
    }
    runs
}

/// Metadata of these devices, each a list of thin block, data block, length and time; device `n` was made at time 10.
fn restore(directory: &Path, devices: &[Vec<(u64, u64, u64, u32)>]) -> std::path::PathBuf {
    let mut xml = String::from(
        "<superblock uuid=\"\" time=\"10\" transaction=\"1\" flags=\"0\" version=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"100000\">\n",
    );
    for (id, mappings) in devices.iter().enumerate() {
        let mapped: u64 = mappings.iter().map(|m| m.2).sum();
        writeln!(
            xml,
            "<device dev_id=\"{id}\" mapped_blocks=\"{mapped}\" transaction=\"0\" creation_time=\"10\" snap_time=\"10\">"
        )
        .unwrap();
        for (thin, data, len, time) in mappings {
            writeln!(
                xml,
                "<range_mapping origin_begin=\"{thin}\" data_begin=\"{data}\" length=\"{len}\" time=\"{time}\"/>"
            )
            .unwrap();
        }
        xml.push_str("</device>\n");
    }
    xml.push_str("</superblock>\n");
    let (input, output) = (directory.join("xml"), directory.join("metadata"));
    fs::write(&input, xml).unwrap();
    fs::File::create(&output).unwrap().set_len(16 << 20).unwrap();
    let restored = Command::new("thin_restore")
        .args([
            "-q",
            "-i",
            input.to_str().unwrap(),
            "-o",
            output.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");
    output
}

/// Disjoint runs of data blocks for disjoint runs of thin ones, scattered; what one device uses, the others may share.
fn mappings() -> impl Strategy<Value = Vec<(u64, u64, u64, u32)>> {
    let gap_or_none = prop_oneof![Just(0u64), 1..50u64];
    let pieces = proptest::collection::vec((gap_or_none, 1..40u64, 0..10u32, any::<u64>()), 0..600);
    pieces.prop_map(|pieces| {
        let (mut thin, mut runs) = (0, Vec::new());
        for &(gap, len, time, place) in &pieces {
            thin += gap;
            runs.push((thin, place, len, time));
            thin += len;
        }
        // Their order in the pool is another than in the device.
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_by_key(|&i| runs[i].1);
        let mut data = 0;
        for i in order {
            runs[i].1 = data;
            data += runs[i].2 + data % 3;
        }
        runs
    })
}

fn has_tools(test: &str) -> bool {
    let found = ["thin_restore", "thin_dump", "thin_delta"].iter().all(|program| {
        let directories = std::env::var("PATH").unwrap_or_default();
        directories
            .split(':')
            .any(|d| Path::new(d).join(program).exists())
    });
    if !found {
        let line = format!("SKIP: {test}: thin_restore, thin_dump and thin_delta are not installed\n");
        eprint!("{line}");
        if let Some(log) = std::env::var_os("SKIP_LOG") {
            let mut log = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .unwrap();
            log.write_all(line.as_bytes()).unwrap();
        }
    }
    found
}

#[test]
fn the_map_is_the_one_that_thin_dump_prints() {
    if !has_tools("the_map_is_the_one_that_thin_dump_prints") {
        return;
    }
    let config = ProptestConfig::with_cases(24);
    proptest!(config, |(devices in proptest::collection::vec(mappings(), 1..4))| {
        let directory = tempfile::tempdir().unwrap();
        let metadata = restore(directory.path(), &devices);
        let memory = Memory(fs::read(&metadata).unwrap());
        for (id, mappings) in devices.iter().enumerate() {
            let dump = Command::new("thin_dump")
                .args(["--dev-id", &id.to_string(), metadata.to_str().unwrap()])
                .output()
                .unwrap();
            prop_assert!(dump.status.success(), "{:?}", dump);
            let expected = dumped(&String::from_utf8(dump.stdout).unwrap());
            let map = ThinMap::read(&memory, 0, id as u64, GEOMETRY).unwrap();
            prop_assert_eq!(&map.runs, &expected);
            prop_assert_eq!(map.mapped_blocks, mappings.iter().map(|m| m.2).sum::<u64>());
        }
    });
}

/// What the tool takes for broken may still be read right by us (it looks at more than one device); but where it reads on, we never
/// read something else.
#[test]
fn flipped_bytes_of_real_metadata_give_the_same_map_or_none() {
    if !has_tools("flipped_bytes_of_real_metadata_give_the_same_map_or_none") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mappings: Vec<_> = (0..5_000).map(|n| (n * 2, n * 3 % 99_991, 1, 0)).collect();
    let mut metadata = Memory(fs::read(restore(directory.path(), &[mappings])).unwrap());
    let used = metadata.0.iter().rposition(|&b| b != 0).unwrap();
    metadata.0.truncate((used + 1).next_multiple_of(4096));
    let truth = ThinMap::read(&metadata, 0, 0, GEOMETRY).unwrap();
    assert_eq!(truth.mapped_blocks, 5_000);
    proptest!(ProptestConfig::with_cases(256), |(at in 0..=used, flip in 1..=255u8)| {
        let mut bad = metadata.clone();
        bad.0[at] ^= flip;
        if let Ok(map) = ThinMap::read(&bad, 0, 0, GEOMETRY) {
            prop_assert!(map == truth, "a flip at byte {at} gave another map");
        }
    });
}

/// Blocks that two devices have mapped alike, by `thin_delta`.
fn alike(xml: &str) -> Vec<u64> {
    let number = |line: &str, name: &str| -> u64 {
        let (_, rest) = line.split_once(&format!(" {name}=\"")).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    };
    let same = xml.lines().filter(|line| line.contains("<same"));
    same.flat_map(|line| (0..number(line, "length")).map(move |nth| number(line, "begin") + nth))
        .collect()
}

#[test]
fn what_two_devices_have_alike_is_what_thin_delta_says() {
    if !has_tools("what_two_devices_have_alike_is_what_thin_delta_says") {
        return;
    }
    let config = ProptestConfig::with_cases(24);
    proptest!(config, |(older in mappings(), kept in proptest::collection::vec(0..4u8, 600))| {
        // Of each run the newer one keeps all, the first half, or nothing, or has its own.
        let runs = older.iter().zip(&kept).enumerate();
        let newer: Vec<_> = runs.filter_map(|(nth, (&(thin, data, len, time), kept))| match kept {
            0 => Some((thin, data, len, time)),
            1 if len > 1 => Some((thin, data, len / 2, time)),
            2 => Some((thin, 60_000 + nth as u64 * 40, len, time)),
            _ => None,
        }).collect();
        let directory = tempfile::tempdir().unwrap();
        let metadata = restore(directory.path(), &[older.clone(), newer]);
        let delta = Command::new("thin_delta")
            .args(["--thin1", "0", "--thin2", "1", metadata.to_str().unwrap()])
            .output()
            .unwrap();
        prop_assert!(delta.status.success(), "{:?}", delta);
        let memory = Memory(fs::read(&metadata).unwrap());
        let block = GEOMETRY.data_block_size;
        let end = older.last().map_or(0, |run| run.0 + run.2) + 1;
        let extents = |id| extents(&ThinMap::read(&memory, 0, id, GEOMETRY).unwrap(), end * block, block);
        let (then, now) = (extents(0), extents(1));
        let map = ChangedMap::all_but(end * block, same(&then, &now));
        let is_mapped = |at: u64| then.located.iter().any(|located| located.range.contains(at));
        let ours: Vec<u64> = (0..end)
            .filter(|nth| is_mapped(nth * block) && !map.is_changed(nth * block))
            .collect();
        prop_assert_eq!(ours, alike(&String::from_utf8(delta.stdout).unwrap()));
    });
}
