//! What a client had made is the older image of an incremental backup while it stands, and after a thaw that says it has committed.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::Value;
use tests::needs_loop_devices;
use tests::program::{backup, nbd_export, proxy_client};
use tests::site::text;

use super::{Ground, NEW};

impl Ground {
    fn keeping(tables: &str) -> Self {
        Self::told(
            "keep-for-incremental = 1",
            "",
            "",
            &format!("[on-request]\nevery = 0\n{tables}"),
        )
    }

    /// An image of what the host freezes for it, over another one if it is told so.
    fn back_up(&self, name: &str, parent: Option<&str>) -> Value {
        let (uri, image) = (self.site.uri(NEW), self.outside(name));
        let parent = parent.map(|parent| self.outside(parent));
        let mut arguments = vec![&uri[..], "--output", text(&image)];
        if let Some(parent) = &parent {
            arguments.extend(["--parent", text(parent)]);
        }
        backup(&arguments)
    }

    fn write(&self, at: u64) {
        let volume = fs::File::options().write(true).open(self.site.volume()).unwrap();
        volume.write_all_at(&[7; 64 << 10], at).unwrap();
        volume.sync_all().unwrap();
    }

    fn assert_holds_the_volume(&self, name: &str) {
        let (image, restored) = (self.outside(name), self.outside("restored"));
        proxy_client(&["restore", text(&image), "--output", text(&restored)]);
        assert!(
            fs::read(&restored).unwrap() == fs::read(self.site.volume()).unwrap(),
            "{name}"
        );
        fs::remove_file(&restored).unwrap();
    }

    fn kept(&self) -> Vec<String> {
        let listed = nbd_export(&["list", "--json", "--control", text(&self.site.control())]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let kept = listed["volumes"][0]["kept"].as_array().unwrap().iter();
        kept.map(|image| image["uuid"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn is_over(report: &Value, parent: &Value) {
    assert_eq!(report["parent"], parent["frozen"], "{report}");
    assert!(report["full_because"].is_null(), "{report}");
}

#[test]
fn what_a_client_had_made_is_the_parent_of_the_next() {
    needs_loop_devices!("mkfs.xfs");
    let ground = Ground::keeping("");
    let control = ground.site.control();
    let monday = ground.back_up("mon", None);
    ground.write(1 << 20);
    // It stands, under its hold.
    let tuesday = ground.back_up("tue", Some("mon"));
    is_over(&tuesday, &monday);
    ground.assert_holds_the_volume("tue");
    // A thaw says that its backup has committed.
    for frozen in [&monday, &tuesday] {
        let uuid = frozen["frozen"].as_str().unwrap();
        nbd_export(&["thaw", uuid, "--control", text(&control)]);
    }
    assert_eq!(ground.kept(), [tuesday["frozen"].as_str().unwrap()]);
    ground.write(5 << 20);
    let wednesday = ground.back_up("wed", Some("tue"));
    is_over(&wednesday, &tuesday);
    ground.assert_holds_the_volume("wed");
}

/// Nobody said that its backup has committed, so it must not take the place of one that did.
#[test]
fn what_ends_by_its_hold_is_no_parent() {
    needs_loop_devices!("mkfs.xfs");
    let ground = Ground::keeping("hold = 6");
    let control = ground.site.control();
    let monday = ground.back_up("mon", None);
    let uuid = monday["frozen"].as_str().unwrap();
    nbd_export(&["thaw", uuid, "--control", text(&control)]);
    ground.write(1 << 20);
    is_over(&ground.back_up("tue", Some("mon")), &monday);
    ground.wait_until_thawed();
    assert_eq!(ground.kept(), [uuid]);
    ground.write(5 << 20);
    is_over(&ground.back_up("wed", Some("mon")), &monday);
    ground.assert_holds_the_volume("wed");
    ground.wait_until_thawed();
    let full = ground.back_up("thu", Some("tue"));
    assert!(
        full["parent"].is_null() && full["full_because"].is_string(),
        "{full}"
    );
}
