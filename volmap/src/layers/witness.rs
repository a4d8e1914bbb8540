//! What a chain was built from, and whether it is still so.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock};

use super::btrfs::Trace;
use super::dm_table::DeviceMapper;
use super::sysfs::{OpenAttribute, Sysfs};
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::{DeviceStatus, TargetLine};
use crate::sys::loop_device::{self, LoopStatus};

/// One layer as it was when the chain was built.
#[derive(Debug)]
pub(super) enum Fact {
    /// Attributes of a device in sysfs: start and size of a partition, size and identity of a disk.
    Attributes {
        sysfs: Sysfs,
        device: DeviceNumber,
        remembered: Vec<Attribute>,
    },
    /// Table, UUID and own event number of a device-mapper device.
    Table {
        mapper: Arc<dyn DeviceMapper>,
        device: DeviceNumber,
        status: DeviceStatus,
        table: Vec<TargetLine>,
    },
    /// What the targets of a device-mapper device say of themselves: whether the legs of a mirror are in sync.
    TargetStatus {
        mapper: Arc<dyn DeviceMapper>,
        device: DeviceNumber,
        status: Vec<TargetLine>,
    },
    /// That nothing at all happened to any device-mapper device: a table that was changed and changed back reads the same.
    NoMapperEvents { mapper: Arc<dyn DeviceMapper> },
    /// What btrfs leaves behind when it moves something.
    Btrfs(Box<Trace>),
    /// The file and the offset that a loop device shows. Open, so that the device number cannot be used anew.
    Loop {
        device: DeviceNumber,
        file: File,
        status: LoopStatus,
    },
}

/// An attribute that a device has, as it was when the chain was built.
#[derive(Debug)]
pub(super) struct Attribute {
    name: &'static str,
    open: OpenAttribute,
    then: Option<String>,
}

impl Fact {
    /// Remembers attributes as they are now. Those that the device does not have it does not get later: they are made with it.
    pub(super) fn attributes(
        sysfs: &Sysfs,
        device: DeviceNumber,
        names: impl IntoIterator<Item = &'static str>,
    ) -> io::Result<Self> {
        let mut remembered = Vec::new();
        for name in names {
            if let Some(open) = sysfs.open_attribute(device, name)? {
                let then = open.value()?;
                remembered.push(Attribute { name, open, then });
            }
        }
        Ok(Self::Attributes {
            sysfs: sysfs.clone(),
            device,
            remembered,
        })
    }

    /// Whether the same attributes of the same device are in both.
    fn tells_of_the_same(&self, other: &Self) -> bool {
        let (
            Self::Attributes {
                device, remembered, ..
            },
            Self::Attributes {
                device: of,
                remembered: others,
                ..
            },
        ) = (self, other)
        else {
            return false;
        };
        device == of
            && remembered
                .iter()
                .map(|a| a.name)
                .eq(others.iter().map(|a| a.name))
    }

    fn check(&self) -> Result<(), String> {
        let unreadable = |what: &dyn std::fmt::Display, error: io::Error| {
            format!("{what} cannot be read any more: {error}")
        };
        match self {
            Self::Attributes {
                sysfs,
                device,
                remembered,
            } => {
                for Attribute { name, open, then } in remembered {
                    let now = open
                        .value()
                        .map_err(|e| unreadable(&format_args!("sysfs {name} of {device}"), e))?;
                    if now != *then {
                        let name_of = sysfs.name(*device);
                        return Err(format!(
                            "{name} of block device {name_of} changed from {then:?} to {now:?}"
                        ));
                    }
                }
                Ok(())
            }
            Self::Table {
                mapper,
                device,
                status,
                table,
            } => {
                let what = format_args!("the device-mapper table of {device}");
                let now = mapper.device_status(*device).map_err(|e| unreadable(&what, e))?;
                let table_now = mapper.table(*device).map_err(|e| unreadable(&what, e))?;
                if now == *status && table_now == *table {
                    Ok(())
                } else {
                    Err(format!("the device-mapper device {} changed", status.name))
                }
            }
            Self::TargetStatus {
                mapper,
                device,
                status,
            } => {
                let what = format_args!("the device-mapper status of {device}");
                let now = mapper.target_status(*device).map_err(|e| unreadable(&what, e))?;
                if now.targets == *status {
                    Ok(())
                } else {
                    Err(format!(
                        "the mirror {device} is not as it was: a leg failed, or is being synchronised"
                    ))
                }
            }
            Self::NoMapperEvents { mapper } => match mapper.events_since_armed() {
                Ok(false) => Ok(()),
                Ok(true) => Err("a device-mapper device of this machine was changed".to_owned()),
                Err(error) => Err(unreadable(&"the device-mapper's event counter", error)),
            },
            Self::Btrfs(trace) => trace.check(),
            Self::Loop { device, file, status } => {
                let now = loop_device::status(file)
                    .map_err(|e| unreadable(&format_args!("the backing file of loop device {device}"), e))?;
                if now == *status {
                    Ok(())
                } else {
                    Err(format!("loop device {device} shows another file or place"))
                }
            }
        }
    }
}

/// The witness of all layers between a volume's uppermost store and its disks.
#[derive(Debug, Default)]
pub struct LayerWitness {
    facts: Vec<Fact>,
    lost: OnceLock<String>,
}

impl LayerWitness {
    /// What was remembered first is what has to be found: many segments of a volume lie on the same few devices.
    pub(super) fn remember(&mut self, fact: Fact) {
        if !self.facts.iter().any(|known| known.tells_of_the_same(&fact)) {
            self.facts.push(fact);
        }
    }

    /// Reads every layer again: some microseconds for each.
    ///
    /// # Errors
    /// Why the mapping is lost. Sticky: once lost, it stays lost, even if the layers look as before.
    pub fn check(&self) -> Result<(), String> {
        if let Some(reason) = self.lost.get() {
            return Err(reason.clone());
        }
        match self.facts.iter().try_for_each(Fact::check) {
            Ok(()) => Ok(()),
            Err(reason) => Err(self.lost.get_or_init(|| reason).clone()),
        }
    }
}
