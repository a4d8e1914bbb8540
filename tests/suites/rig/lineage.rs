//! What changed between two snapshots of a real kernel, while somebody overwrites the volume and gives parts of it back: whatever differs
//! is told to have changed, and what nobody touched is not.

use std::time::Duration;

use serde_json::Value;
use tests::guest::{Guest, Rig, Setup};
use tests::needs_guests;
use tests::program::proxy_client;

use super::MIB;
use crate::lineage::{assert_same, told_same};

const SIZE: u64 = 24 * MIB;

/// Writes all over the first half of both volumes, what was there before among it, and gives back parts of the thin one, which has parts that were never
/// written.
const WRITER: &str = "exec python3 -c '
import os, mmap, random, fcntl, struct
volumes = [os.open(\"/dev/vg/\" + name, os.O_RDWR | os.O_DIRECT) for name in (\"db\", \"tv\")]
m = mmap.mmap(-1, 1 << 18)
print(\"writing\", flush=True)
while True:
    for f in volumes:
        length = random.choice((4096, 65536, 1 << 18))
        at = random.randrange(0, (12 << 20) - length) // 4096 * 4096
        if random.random() < 0.3:
            os.preadv(f, [memoryview(m)[:length]], at)
        else:
            m[:4096] = os.urandom(4096)
        os.pwritev(f, [memoryview(m)[:length]], at)
    if random.random() < 0.2:
        fcntl.ioctl(volumes[1], 0x1277, struct.pack(\"QQ\", random.randrange(0, 90) << 17, 1 << 18))
'";

/// A frozen image in the guest, with what it holds.
struct Frozen {
    export: String,
    uuid: String,
    lineage: Vec<String>,
    bytes: Vec<u8>,
}

/// A guest with a thick and a thin volume that somebody writes to.
struct Site<'a> {
    rig: &'a Rig,
    guest: Guest,
}

impl Site<'_> {
    fn ask(&self, verb: &str) -> String {
        self.guest
            .run(&format!("nbd-export {verb} --json --control /run/control"))
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd://{}:10809/{export}", self.guest.address)
    }

    fn freeze(&self, volume: &str, id: &str) -> Frozen {
        let made: Value = serde_json::from_str(&self.ask(&format!("freeze {volume} --as {id}"))).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let export = text(&made["export"]);
        let copy = self.rig.path("copy");
        let _ = std::fs::remove_file(&copy);
        proxy_client(&["copy", &self.uri(&export), copy.to_str().unwrap()]);
        Frozen {
            bytes: std::fs::read(copy).unwrap(),
            export,
            uuid: text(&made["uuid"]),
            lineage: made["lineage"].as_array().unwrap().iter().map(text).collect(),
        }
    }

    /// What is told to be the same of two images is; and the half that nobody writes to is.
    fn assert_told_right(&self, newer: &Frozen, older: &Frozen) {
        let map = format!("--map=x-volmap:changed:{}", older.uuid);
        let map = proxy_client(&["info", &map, "--json", &self.uri(&newer.export)]);
        let same = told_same(&map, newer.bytes.len());
        let bytes = assert_same(&newer.bytes, &older.bytes, &same);
        let whole = older.bytes.len() as u64;
        assert!(
            (SIZE / 2..whole).contains(&bytes),
            "{} of {whole} bytes are the same",
            bytes
        );
        eprintln!(
            "right: {} since {}: {bytes} bytes are the same",
            newer.export, older.export
        );
    }
}

#[test]
fn whatever_differs_between_two_snapshots_is_told_to_have_changed() {
    needs_guests!("lvm", "python3");
    let rig = Rig::new();
    let lun = rig.disk("lun0", 320 * MIB);
    let setup = Setup {
        disks: &[&lun],
        deadline: Duration::from_secs(480),
        ..Setup::default()
    };
    let guest = rig.boot_with("host", &setup);
    guest.run(&format!(
        "pvcreate -qq -y /dev/ubda
         vgcreate -qq -s 1M vg /dev/ubda
         lvcreate -qq -y -Wn -L {SIZE}b -n db vg
         lvcreate -qq -y -Wn --thinpool pool -L 100M -c 64k --poolmetadatasize 4M vg
         lvcreate -qq -y -V {SIZE}b --thinpool pool -n tv vg
         dd if=/dev/urandom of=/dev/vg/db bs=1M oflag=direct status=none || true
         dd if=/dev/urandom of=/dev/vg/tv bs=1M count=16 oflag=direct status=none"
    ));
    let (host, _) = guest.serve(&format!(
        "db=/dev/vg/db tv=/dev/vg/tv --no-freeze --keep-for-incremental=2 --identity /dev/ubda=lun0 --listen {}:10809 \
         --insecure-plaintext --control /run/control --snapshot-size 100%",
        guest.address
    ));
    let site = Site { rig: &rig, guest };
    let mut writer = site.guest.start(WRITER);
    assert_eq!(writer.line().as_deref(), Some("writing"));
    for volume in ["db", "tv"] {
        let one = site.freeze(volume, "1");
        assert!(one.lineage.is_empty());
        // Nobody reads it any more; what it holds on to stays.
        site.ask(&format!("thaw {}", one.export));
        let two = site.freeze(volume, "2");
        assert_eq!(two.lineage, [&*one.uuid]);
        site.assert_told_right(&two, &one);
        if volume == "tv" {
            site.guest.run("lvextend -qq -L +1M vg/tv");
        }
        let three = site.freeze(volume, "3");
        assert_eq!(three.lineage, [&*one.uuid, &*two.uuid]);
        for older in [&one, &two] {
            site.assert_told_right(&three, older);
        }
        // The one that is gone is compared with nobody.
        site.ask(&format!("thaw --drop {}", one.uuid));
        site.ask(&format!("thaw --drop {}", three.export));
        let four = site.freeze(volume, "4");
        assert_eq!(four.lineage, [&*two.uuid]);
        site.assert_told_right(&four, &two);
    }
    site.guest.run(&format!("kill {}", writer.pid));
    site.guest.run(&format!("kill {}", host.pid));
    assert_eq!(host.wait().status, 0);
    assert_eq!(site.guest.run("lvs --noheadings -o lv_name @volmap").trim(), "");
}
