//! docs/image-format.md says what the code does.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::image::layout;

const DOCUMENT: &str = include_str!("../../../../docs/image-format.md");

/// The byte tables of the document: heading to rows of (field, bytes). Rows without fixed places end a table's part that
/// can be compared.
fn tables() -> BTreeMap<String, Vec<(String, Range<usize>)>> {
    let mut tables: BTreeMap<String, Vec<_>> = BTreeMap::new();
    let mut heading = String::new();
    for line in DOCUMENT.lines() {
        if line.starts_with('#') {
            heading = line.trim_start_matches(['#', ' ']).to_owned();
            continue;
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let (Some(Ok(offset)), Some(Ok(size))) = (
            cells.get(1).map(|cell| cell.parse::<usize>()),
            cells.get(2).map(|cell| cell.parse::<usize>()),
        ) else {
            continue;
        };
        tables
            .entry(heading.clone())
            .or_default()
            .push((cells[3].to_uppercase(), offset..offset + size));
    }
    tables
}

#[test]
fn the_byte_tables_are_those_of_the_code() {
    let tables = tables();
    for (heading, fields) in [
        ("2. HEADER payload", layout::header::FIELDS),
        ("3. RECORDS payload", layout::records::FIELDS),
        ("Frame entry", layout::frame_entry::FIELDS),
        ("Record", layout::record::FIELDS),
        ("5. CHECKPOINT payload", layout::checkpoint::FIELDS),
        ("6. END payload", layout::end::FIELDS),
    ] {
        let documented: Vec<_> = tables[heading]
            .iter()
            .map(|(name, range)| (name.as_str(), range.clone()))
            .collect();
        assert_eq!(documented, fields, "{heading}");
    }
    assert_eq!(tables.len(), 7, "a table is not compared");
}

#[test]
fn constants_stand_in_the_document() {
    use crate::image::{hash, limits};
    for text in [
        format!("Format version: **{}**", layout::VERSION),
        format!("full ones are written as version **{}**", layout::FULL_VERSION),
        format!("multiple of {} bytes", layout::BLOCK),
        format!("before version {} no data frame", layout::SAME_BLOCKS_VERSION),
        format!("`0x{:08X}`", layout::OUR_MAGIC),
        format!("`0x{:08X}`", layout::TABLE_MAGIC),
        format!("`0x{:08X}`", layout::TABLE_FOOTER_MAGIC),
        format!("| {} |", layout::LEAF),
        format!("`{}`", hash::ROOT_CONTEXT),
        format!("`{}`", hash::UNREADABLE_CONTEXT),
        format!("at most {} |", limits::HEADER_TEXT_MAX),
        format!("at most {} |", limits::CHECKPOINT_TEXT_MAX),
        format!("1 to {} |", limits::GROUP_FRAMES_MAX),
        format!("1 to {} |", limits::GROUP_RECORDS_MAX),
        format!("8 to {}, ", limits::DATA_COMPRESSED_MAX),
        format!("to {} |", limits::ZERO_COMPRESSED_MAX),
        format!("at most {} |", limits::FRAMES_MAX),
    ] {
        assert!(DOCUMENT.contains(&text), "{text}");
    }
    for tag in [
        layout::HEADER_TAG,
        layout::RECORDS_TAG,
        layout::CHECKPOINT_TAG,
        layout::END_TAG,
    ] {
        assert!(DOCUMENT.contains(std::str::from_utf8(&tag).unwrap()));
    }
    assert_eq!(limits::DATA_FRAME_MAX, 1 << 20);
    assert_eq!(limits::ZERO_FRAME_MAX, 1 << 30);
}
