//! What an administrator can do about a target that is not followed.

/// A sentence for a target of this type. Its bytes go over NBD in any case.
pub(in crate::layers) fn advice(target: &str) -> &'static str {
    match target {
        "crypt" => {
            "what lies on the disk under it is ciphertext, so its bytes are read through the host; to have the ciphertext backed up \
             instead, directly, export the device under it"
        }
        "snapshot-origin" => {
            "it is live, and whoever writes to it changes what would be read; freeze a snapshot of it instead"
        }
        "snapshot" | "snapshot-merge" => {
            "under a classic snapshot bytes move with every write to its origin, so as a layer it is not followed"
        }
        "thin" | "thin-pool" => {
            "where the bytes of a thin volume lie is told by the metadata of its pool, so as a layer it is not followed"
        }
        "cache" | "writecache" => {
            "bytes may be on its cache device only, and move on their own; to have direct reads, end the cache (lvconvert --uncache)"
        }
        "raid" => "of RAID only level 1 is followed; stripes of LVM (lvcreate --type striped) are, too",
        "integrity" | "verity" => {
            "its data is interleaved with, or checked by, sums that a direct read would not look at"
        }
        "vdo" => "it deduplicates and compresses, so the bytes of the volume lie nowhere as such",
        "clone" | "era" | "zoned" | "log-writes" | "dust" | "ebs" | "switch" | "unstriped" => {
            "it has a map or a state of its own that is not understood; on a linear or striped volume there would be direct reads"
        }
        "error" | "zero" => "there is nothing on a disk under it",
        "delay" | "flakey" => "it is made for tests, and not followed",
        _ => "it is not understood (linear, striped, multipath, mirror and raid1 are)",
    }
}
