//! `nbd-export list`: volumes and origins, and under each its frozen images.

use std::io::{self, Write};

use uuid::Uuid;

use super::{print_json, unexpected, unprintable};
use crate::cli::ListArgs;
use crate::config::control_path;
use crate::error::Error;
use crate::host::control::{Reply, Request, ask};
use crate::host::{FillState, Listing, SetReport, State, VolumeKind};

pub(super) fn run(args: &ListArgs, out: &mut dyn Write) -> Result<(), Error> {
    let Reply::Listing(listing) = ask(&control_path(args.client.control.as_deref()), &Request::List)? else {
        return Err(unexpected());
    };
    if args.client.json {
        return print_json(out, &listing);
    }
    print(&listing, out).map_err(unprintable)
}

fn print(listing: &Listing, out: &mut dyn Write) -> io::Result<()> {
    for volume in &listing.volumes {
        let kind = match volume.kind {
            VolumeKind::Volume => "volume",
            VolumeKind::Origin => "origin",
            VolumeKind::Writable => "writable",
        };
        let size = volume
            .size
            .map_or_else(|| "missing".to_owned(), |size| format!("{size} bytes"));
        write!(out, "{kind} {}: {size}, {}", volume.name, volume.path)?;
        if let Some(fill) = volume.copy_area {
            write!(out, ", copy area {} of {} bytes used", fill.used, fill.size)?;
            let state = match fill.state {
                FillState::Good => "",
                FillState::Filling => ", FILLING",
                FillState::NearlyFull => ", NEARLY FULL",
                FillState::Full => ", FULL",
            };
            write!(out, "{state}")?;
            if fill.held_writers > 0 {
                write!(out, ", {} writers HELD", fill.held_writers)?;
            }
        }
        writeln!(out, "{}", in_angles(volume.uri.as_deref()))?;
        for frozen in &volume.frozen {
            let state = match frozen.state {
                State::Good => "",
                State::Gone => ", GONE",
            };
            writeln!(
                out,
                "  frozen {}: {}, {}{}, {} s old, {} bytes{state}{}{}",
                frozen.export,
                frozen.method,
                frozen.strength,
                of_set(frozen.set.as_ref()),
                frozen.age_seconds,
                frozen.size,
                since(&frozen.lineage),
                in_angles(frozen.uri.as_deref())
            )?;
        }
        for kept in &volume.kept {
            let (export, uuid, method, age) = (&kept.export, kept.uuid, &kept.method, kept.age_seconds);
            let state = match kept.state {
                State::Good => "",
                State::Gone => ", GONE: the next backup is a full one",
            };
            writeln!(out, "  kept {uuid}: was {export}, {method}, {age} s old{state}")?;
        }
    }
    for tag in &listing.tags {
        let uri = in_angles(tag.uri.as_deref());
        writeln!(out, "tag {}: {} bytes{uri}", tag.export, tag.size)?;
    }
    Ok(())
}

/// `, one of 3 of the set db@1, held by lease for 5 ms`, or nothing.
fn of_set(set: Option<&SetReport>) -> String {
    set.map(|set| {
        format!(
            ", one of {} of the set {}, held by {} for {} ms",
            set.members, set.name, set.held_by, set.window_ms
        )
    })
    .unwrap_or_default()
}

/// `, changes known since UUID UUID`, or nothing.
fn since(lineage: &[Uuid]) -> String {
    if lineage.is_empty() {
        return String::new();
    }
    let parents: Vec<String> = lineage.iter().map(Uuid::to_string).collect();
    format!(", changes known since {}", parents.join(" "))
}

/// ` <uri>`, or nothing where no listener offers it.
fn in_angles(uri: Option<&str>) -> String {
    uri.map(|uri| format!(" <{uri}>")).unwrap_or_default()
}
