//! `nbd-export map`: the chain of every extent of a volume, down to the disk.

mod picture;

use std::io::{self, Write};

use serde::{Serialize, Serializer};
use volmap::map::Content;
use volmap::probe::{self, MappedExtent, VolumeMap};
use volmap::store::Place;

use super::{layers, print_json, unprintable};
use crate::cli::MapArgs;
use crate::error::{Error, ErrorKind};

/// Said with every map: nobody holds the volume still for it.
const WARNING: &str = "the volume is not frozen: this map may be outdated already";

#[derive(Serialize)]
struct VolumeJson<'a> {
    volume: String,
    size: u64,
    warning: &'static str,
    stores: Vec<StoreJson<'a>>,
    #[serde(serialize_with = "serialize_extents")]
    extents: &'a VolumeMap,
}

#[derive(Serialize)]
struct StoreJson<'a> {
    identity: &'a str,
    kind: &'static str,
    label: &'a str,
    size: u64,
}

/// One stretch of a volume that lies in one piece in every store.
#[derive(Serialize)]
struct ExtentJson<'a> {
    offset: u64,
    length: u64,
    content: &'static str,
    /// From the volume down; empty for zeroes.
    chain: Vec<PlaceJson<'a>>,
    /// Whether a second machine could read it from the disk.
    direct: bool,
    /// Why the chain ends above a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    opaque: Option<String>,
}

#[derive(Serialize)]
struct PlaceJson<'a> {
    store: &'a str,
    kind: &'static str,
    offset: u64,
}

pub(super) fn run(args: &MapArgs, out: &mut dyn Write) -> Result<(), Error> {
    let map = probe::map(&args.volume, &layers(&args.identity)?)
        .map_err(|why| Error::caused(ErrorKind::Volume, "cannot map", why))?;
    if args.svg {
        return picture::draw(&map, &args.volume.to_string_lossy(), out).map_err(unprintable);
    }
    if args.json {
        let stores = map.graph.stores().iter().map(|store| StoreJson {
            identity: store.identity.as_str(),
            kind: store.kind.name(),
            label: &store.label,
            size: store.size,
        });
        let volume = VolumeJson {
            volume: args.volume.display().to_string(),
            size: map.size,
            warning: WARNING,
            stores: stores.collect(),
            extents: &map,
        };
        return print_json(out, &volume);
    }
    tracing::info!("{WARNING}");
    map.extents()
        .try_for_each(|extent| print(&extent_json(&map, extent), out))
        .map_err(unprintable)
}

fn serialize_extents<S: Serializer>(map: &VolumeMap, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map.extents().map(|extent| extent_json(map, extent)))
}

fn extent_json(map: &VolumeMap, extent: MappedExtent) -> ExtentJson<'_> {
    let place = |place: &Place| {
        let store = map.graph.store(place.store);
        PlaceJson {
            store: store.identity.as_str(),
            kind: store.kind.name(),
            offset: place.offset,
        }
    };
    ExtentJson {
        offset: extent.range.start(),
        length: extent.range.len(),
        content: match extent.content {
            Content::Data => "data",
            Content::Zero => "zero",
            Content::Hole => "hole",
        },
        chain: extent.chain.iter().map(place).collect(),
        direct: extent.opaque.is_none(),
        opaque: extent.opaque,
    }
}

/// `OFFSET LENGTH CONTENT KIND STORE@OFFSET > … [(reason)]`
fn print(extent: &ExtentJson<'_>, out: &mut dyn Write) -> io::Result<()> {
    let chain: Vec<String> = extent
        .chain
        .iter()
        .map(|place| format!("{} {}@{}", place.kind, place.store, place.offset))
        .collect();
    write!(
        out,
        "{:>16} {:>16} {}",
        extent.offset, extent.length, extent.content
    )?;
    if !chain.is_empty() {
        write!(out, " {}", chain.join(" > "))?;
    }
    match &extent.opaque {
        Some(reason) => writeln!(out, " (never direct: {reason})"),
        None => writeln!(out),
    }
}
