//! What an export says of itself through the names of its contexts (docs/x-volmap.md).

use nbd_export::proto::ContextName;
use uuid::Uuid;
use volmap::identity::Identity;

use crate::plan::mapped::ContextRole;

const ALLOCATION: &str = "base:allocation";
const FROZEN: &str = "x-volmap:frozen:";
const GENERATION: &str = "x-volmap:generation";
const DISK: &str = "x-volmap:disk:";
const STORE: &str = "x-volmap:store:";

/// What the context names of an export tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// The frozen image; `None` for a server that publishes none.
    pub frozen: Option<Uuid>,
    /// Every disk that data can lie on.
    pub disks: Vec<Identity>,
    /// Every store above the disks, with its depth.
    pub stores: Vec<(u16, Identity)>,
    generation: bool,
    allocation: bool,
}

impl Published {
    /// The names to ask a server for.
    pub fn queries() -> Vec<ContextName> {
        names([ALLOCATION.to_owned(), "x-volmap:".to_owned()])
    }

    /// Reads the names that a server listed; what is not understood is not there.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut published = Self::default();
        for name in names {
            if let Some(uuid) = name.strip_prefix(FROZEN) {
                published.frozen = uuid.parse().ok();
            } else if let Some(disk) = name.strip_prefix(DISK) {
                published.disks.extend(disk.parse::<Identity>());
            } else if let Some(store) = name.strip_prefix(STORE) {
                let parsed = store
                    .split_once(':')
                    .and_then(|(d, i)| Some((d.parse().ok()?, i.parse().ok()?)));
                published.stores.extend(parsed);
            } else if name == GENERATION {
                published.generation = true;
            } else if name == ALLOCATION {
                published.allocation = true;
            }
        }
        published
    }

    /// The contexts to select: locations only on disks that the job can read, and never without a generation.
    pub fn selection(&self, luns: &[Identity]) -> Vec<ContextName> {
        let allocation = self.allocation.then(|| ALLOCATION.to_owned());
        let frozen = self.frozen.map(|uuid| format!("{FROZEN}{uuid}"));
        let generation = self.generation.then(|| GENERATION.to_owned());
        let disks = luns
            .iter()
            .filter(|lun| self.generation && self.disks.contains(lun));
        let disks = disks.map(|lun| format!("{DISK}{lun}"));
        names(
            allocation
                .into_iter()
                .chain(frozen)
                .chain(generation)
                .chain(disks),
        )
    }

    /// What a selected context tells, with the position in `luns` as the number of a disk.
    pub fn role(name: &str, luns: &[Identity]) -> Option<ContextRole> {
        match name {
            ALLOCATION => Some(ContextRole::Allocation),
            GENERATION => Some(ContextRole::Generation),
            _ => {
                let disk = name.strip_prefix(DISK)?;
                let number = luns.iter().position(|lun| lun.as_str() == disk)?;
                u16::try_from(number).ok().map(ContextRole::Disk)
            }
        }
    }
}

fn names(texts: impl IntoIterator<Item = String>) -> Vec<ContextName> {
    texts
        .into_iter()
        .filter_map(|text| ContextName::new(&text).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lun(name: &str) -> Identity {
        Identity::from_operator(name).unwrap()
    }

    #[test]
    fn names_are_read_and_only_disks_of_the_job_are_selected() {
        let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let listed = [
            "base:allocation",
            &format!("x-volmap:frozen:{uuid}"),
            "x-volmap:generation",
            "x-volmap:disk:id:a",
            "x-volmap:disk:id:b",
            "x-volmap:store:0:file:f%20g",
            "x-volmap:store:1:xfs:1",
            "x-volmap:unheard:of",
        ];
        let published = Published::from_names(listed);
        assert_eq!(published.frozen.map(|u| u.to_string()).as_deref(), Some(uuid));
        assert_eq!(published.disks, [lun("a"), lun("b")]);
        assert_eq!(
            published
                .stores
                .iter()
                .map(|(d, i)| (*d, i.as_str()))
                .collect::<Vec<_>>(),
            [(0, "file:f%20g"), (1, "xfs:1")]
        );
        let luns = [lun("c"), lun("b")];
        let selected: Vec<_> = published
            .selection(&luns)
            .iter()
            .map(|n| n.as_str().to_owned())
            .collect();
        assert_eq!(selected, [listed[0], listed[1], listed[2], listed[4]]);
        assert_eq!(Published::role(listed[4], &luns), Some(ContextRole::Disk(1)));
        assert_eq!(Published::role(listed[3], &luns), None);
    }

    #[test]
    fn without_a_generation_no_disk_is_selected() {
        let published = Published::from_names(["x-volmap:disk:id:a"]);
        assert!(published.selection(&[lun("a")]).is_empty());
    }
}
