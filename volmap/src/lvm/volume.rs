//! Logical volumes, as LVM reports them.

use super::report::{self, Row};
use super::{LvName, Lvm, LvmError};
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::Control;

/// Length of an identifier of LVM's without hyphens.
const ID_LEN: usize = 32;
/// How LVM groups an identifier.
const ID_GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];

/// The fields that a [`LogicalVolume`] is made of.
const FIELDS: &str = "vg_name,lv_name,lv_uuid,lv_layout,lv_role,lv_permissions,lv_size,vg_free,lv_tags,lv_kernel_major,\
                      lv_kernel_minor,lv_device_open,origin,pool_lv";

/// What a logical volume is to somebody who wants to freeze it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LvKind {
    /// Its extents were allocated when it was made; a classic snapshot can be taken of it.
    Thick,
    /// A classic snapshot: none can be taken of it.
    Snapshot,
    /// It lies in a thin pool.
    Thin,
    /// A pool, or a part of another volume.
    Internal,
}

/// A logical volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogicalVolume {
    /// Its name.
    pub name: LvName,
    /// Its identifier, which it keeps for good.
    pub uuid: String,
    /// What it is.
    pub kind: LvKind,
    /// Whether it was made to be written.
    pub writable: bool,
    /// Size in bytes.
    pub size: u64,
    /// Bytes of its group that nobody uses.
    pub group_free: u64,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its device, while it is active here.
    pub device: Option<DeviceNumber>,
    /// Whether somebody has the device open.
    pub open: bool,
    /// What it is a snapshot of.
    pub origin: Option<String>,
    /// The thin pool that it lies in.
    pub pool: Option<String>,
}

impl Lvm {
    /// The logical volume that a device is; `None` if it is none, or a part of one (`-real`, `-cow`). LVM has to be installed only
    /// where there is one.
    ///
    /// # Errors
    /// [`LvmError`].
    pub fn behind(device: DeviceNumber) -> Result<Option<(Self, LogicalVolume)>, LvmError> {
        let Some(uuid) = uuid_on(device)? else {
            return Ok(None);
        };
        let lvm = Self::find()?;
        // Letters and digits only, see `uuid_of`.
        let volume = lvm.one(&format!("lv_uuid=\"{uuid}\""))?;
        Ok(volume.map(|volume| (lvm, volume)))
    }

    /// The logical volume of this name, if there is one.
    ///
    /// # Errors
    /// [`LvmError`].
    pub fn volume(&self, name: &LvName) -> Result<Option<LogicalVolume>, LvmError> {
        self.one(&format!(
            "vg_name=\"{}\" && lv_name=\"{}\"",
            name.group(),
            name.volume()
        ))
    }

    /// Whether there is a thin pool with this UUID of the device-mapper, active or not. One whose disks are away is none.
    ///
    /// # Errors
    /// [`LvmError`].
    pub fn knows_pool(dm_uuid: &str) -> Result<bool, LvmError> {
        match dm_uuid.strip_suffix("-tpool").and_then(uuid_of) {
            Some(uuid) => Ok(Self::find()?.one(&format!("lv_uuid=\"{uuid}\""))?.is_some()),
            None => Err(LvmError::Report {
                command: "dmsetup info".to_owned(),
                why: "its device is no pool of LVM's",
            }),
        }
    }

    /// The logical volumes in the group of `beside`.
    ///
    /// # Errors
    /// [`LvmError`].
    pub fn volumes_beside(&self, beside: &LvName) -> Result<Vec<LogicalVolume>, LvmError> {
        self.select(&format!("vg_name=\"{}\"", beside.group()))
    }

    /// The logical volumes of this machine whose names begin so.
    ///
    /// # Errors
    /// [`LvmError`].
    pub fn volumes_called(&self, beginning: &str) -> Result<Vec<LogicalVolume>, LvmError> {
        let volumes = self.select(&format!("lv_name=~\"^{beginning}\""))?;
        let called = |volume: &LogicalVolume| volume.name.volume().starts_with(beginning);
        Ok(volumes.into_iter().filter(called).collect())
    }

    fn one(&self, selection: &str) -> Result<Option<LogicalVolume>, LvmError> {
        Ok(self.select(selection)?.into_iter().next())
    }

    /// Hidden volumes are left out.
    fn select(&self, selection: &str) -> Result<Vec<LogicalVolume>, LvmError> {
        let arguments = [
            "lvs",
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
            "-o",
            FIELDS,
            "-S",
            selection,
        ];
        let json = self.query(&arguments)?;
        report::rows(&json, "lv")
            .and_then(|rows| rows.iter().map(LogicalVolume::of).collect())
            .map_err(|why| LvmError::Report {
                command: format!("lvm lvs -S {selection}"),
                why,
            })
    }
}

impl LogicalVolume {
    fn of(row: &Row) -> Result<Self, &'static str> {
        let name =
            LvName::new(row.text("vg_name")?, row.text("lv_name")?).ok_or("a name is none of LVM's")?;
        let size = |field| u64::try_from(row.number(field)?).map_err(|_| "a size is below zero");
        let optional = |field| {
            let text = row.text(field)?;
            Ok::<_, &'static str>((!text.is_empty()).then(|| text.to_owned()))
        };
        Ok(Self {
            name,
            uuid: row.text("lv_uuid")?.to_owned(),
            kind: kind(&row.list("lv_layout")?, &row.list("lv_role")?),
            writable: row.text("lv_permissions")? == "writeable",
            size: size("lv_size")?,
            group_free: size("vg_free")?,
            tags: row.list("lv_tags")?,
            device: device(row)?,
            open: row.text("lv_device_open")? == "open",
            origin: optional("origin")?,
            pool: optional("pool_lv")?,
        })
    }
}

fn kind(layout: &[String], role: &[String]) -> LvKind {
    let has = |list: &[String], word| list.iter().any(|w| w == word);
    if !has(role, "public") || has(layout, "pool") {
        LvKind::Internal
    } else if has(layout, "thin") {
        LvKind::Thin
    } else if has(role, "thicksnapshot") {
        LvKind::Snapshot
    } else {
        LvKind::Thick
    }
}

/// Its device number; -1 stands for none.
fn device(row: &Row) -> Result<Option<DeviceNumber>, &'static str> {
    let part = |field| Ok::<_, &'static str>(u32::try_from(row.number(field)?).ok());
    let (major, minor) = (part("lv_kernel_major")?, part("lv_kernel_minor")?);
    Ok(major
        .zip(minor)
        .map(|(major, minor)| DeviceNumber { major, minor }))
}

/// The identifier of the logical volume that a device is. A machine without device-mapper has none, and neither has a device of
/// another kind.
fn uuid_on(device: DeviceNumber) -> Result<Option<String>, LvmError> {
    use std::io::ErrorKind::NotFound;

    let control = match Control::open() {
        Err(error) if error.kind() == NotFound => return Ok(None),
        other => other.map_err(LvmError::DeviceMapper)?,
    };
    match control.device_status(device) {
        Ok(status) => Ok(uuid_of(&status.uuid)),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => Ok(None),
        Err(error) => Err(LvmError::DeviceMapper(error)),
    }
}

/// `LVM-` and the identifiers of group and volume, as the device-mapper's UUID of an active logical volume. What has more behind them
/// (`-real`, `-cow`, `-tpool`) is a part of one.
fn uuid_of(dm_uuid: &str) -> Option<String> {
    let ids = dm_uuid.strip_prefix("LVM-")?;
    if ids.len() != 2 * ID_LEN || !ids.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let mut rest = ids.get(ID_LEN..)?;
    let mut groups = Vec::new();
    for len in ID_GROUPS {
        let (group, behind) = rest.split_at_checked(len)?;
        groups.push(group);
        rest = behind;
    }
    Some(groups.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identifier_is_read_from_the_device_mapper() {
        let (group, volume) = (
            "Hf0Hs4ZKzfjUYYbEKGmZCm7NiSJqwPh1",
            "abcdefGHIJklmn0123opqrSTUVwxyz89",
        );
        let uuid = format!("LVM-{group}{volume}");
        assert_eq!(
            uuid_of(&uuid).as_deref(),
            Some("abcdef-GHIJ-klmn-0123-opqr-STUV-wxyz89")
        );
        for other in [
            format!("{uuid}-real"),
            format!("{uuid}-cow"),
            format!("CRYPT-LUKS2-{group}"),
            String::new(),
            format!("LVM-{group}{}\"", &volume[1..]),
            uuid[..67].to_owned(),
        ] {
            assert_eq!(uuid_of(&other), None, "{other}");
        }
    }

    fn volume(changes: &[(&str, &str)]) -> Result<LogicalVolume, &'static str> {
        let mut fields = vec![
            ("vg_name", "vg"),
            ("lv_name", "db"),
            ("lv_uuid", "u"),
            ("lv_layout", "linear"),
            ("lv_role", "public"),
            ("lv_permissions", "writeable"),
            ("lv_size", "1073741824"),
            ("vg_free", "4194304"),
            ("lv_tags", ""),
            ("lv_kernel_major", "253"),
            ("lv_kernel_minor", "0"),
            ("lv_device_open", "open"),
            ("origin", ""),
            ("pool_lv", ""),
        ];
        for (field, value) in &mut fields {
            if let Some(change) = changes.iter().find(|change| change.0 == *field) {
                *value = change.1;
            }
        }
        let pairs: Vec<String> = fields.iter().map(|(f, v)| format!("\"{f}\":\"{v}\"")).collect();
        let json = format!("{{\"report\":[{{\"lv\":[{{{}}}]}}]}}", pairs.join(","));
        LogicalVolume::of(&report::rows(json.as_bytes(), "lv")?[0])
    }

    #[test]
    fn kinds_are_told_apart() {
        let kind = |layout, role| volume(&[("lv_layout", layout), ("lv_role", role)]).unwrap().kind;
        assert_eq!(kind("linear", "public,origin,thickorigin"), LvKind::Thick);
        assert_eq!(kind("raid,raid1", "public"), LvKind::Thick);
        assert_eq!(kind("linear", "public,snapshot,thicksnapshot"), LvKind::Snapshot);
        assert_eq!(kind("thin,sparse", "public"), LvKind::Thin);
        assert_eq!(kind("thin,sparse", "public,snapshot,thinsnapshot"), LvKind::Thin);
        assert_eq!(kind("thin,pool", "private"), LvKind::Internal);
        assert_eq!(kind("linear", "private,thin,pool,data"), LvKind::Internal);
    }

    #[test]
    fn what_is_missing_is_missing() {
        let active = volume(&[]).unwrap();
        assert_eq!(active.device, Some(DeviceNumber { major: 253, minor: 0 }));
        assert_eq!((active.origin, active.pool, active.open), (None, None, true));
        let inactive = [
            ("lv_kernel_major", "-1"),
            ("lv_kernel_minor", "-1"),
            ("lv_device_open", ""),
        ];
        let inactive = volume(&inactive).unwrap();
        assert_eq!((inactive.device, inactive.open), (None, false));
        assert!(volume(&[("lv_size", "-1")]).is_err());
        assert!(volume(&[("lv_name", "-f")]).is_err());
    }
}
