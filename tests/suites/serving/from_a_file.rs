//! An agent that serves what its file says.

use std::fs;

use tests::needs;

use super::{Ground, MIB, failure};

impl Ground {
    fn configured(&self, more: &str) {
        let text = format!(
            "state-dir = {:?}\n[listen]\nsocket = [{:?}]\ncontrol = {:?}\n[volume.v]\npath = {:?}\nfreeze = \"static\"\n\
             assume-exclusive = true\n{more}",
            self.path("state"),
            self.path("s"),
            self.path("control"),
            self.path("volume"),
        );
        fs::write(self.path("agent.toml"), text).unwrap();
    }
}

#[test]
fn an_agent_serves_what_its_file_says() {
    needs!("nbdinfo");
    let ground = Ground::new();
    fs::write(ground.path("w"), vec![0; MIB]).unwrap();
    ground.configured(&format!(
        "freeze-at-start = true\nallow = [\"unix\"]\n[volume.later]\npath = {0:?}\nfreeze = \"static\"\nassume-exclusive = true\n\
         [volume.hidden]\npath = {0:?}\nfreeze = \"static\"\nassume-exclusive = true\nfreeze-at-start = true\nallow = []\n\
         [writable.w]\npath = {1:?}\n",
        ground.path("volume"),
        ground.path("w"),
    ));
    let output = ground.sh(
        "\"$NBD_EXPORT\" serve --config agent.toml --ready-fd 9 9>ready & pid=$!\n\
         while [ ! -s ready ] && kill -0 $pid; do sleep 0.01; done\n\
         nbdinfo --list --json 'nbd+unix://?socket=s' | grep export-name\n\
         \"$NBD_EXPORT\" freeze later --as 1 --control=control\n\
         nbdinfo --list --json 'nbd+unix://?socket=s' | grep export-name\n\
         kill $pid && wait $pid",
    );
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout);
    let listed = |name: &str| told.matches(&format!("\"export-name\": \"{name}\"")).count();
    assert_eq!(
        ["v", "w", "later", "later@1", "hidden"].map(listed),
        [2, 2, 0, 1, 0],
        "{told}"
    );
}

#[test]
fn a_file_that_cannot_be_meant_is_refused_before_anything_is_done() {
    let ground = Ground::new();
    for (more, why) in [
        ("frozen = true\n", "line 9, column 1"),
        ("[volume.w]\npath = \"w\"\n", "line 10, column 8"),
        ("[writable.v]\npath = \"/w\"\n", "two exports would be called v"),
    ] {
        ground.configured(more);
        let told = failure(&ground.sh("exec \"$NBD_EXPORT\" serve --config agent.toml"), 2);
        assert!(told.contains(why) && told.contains("agent.toml"), "{told}");
    }
    ground.configured("");
    for beside in ["v=volume", "--listen 127.0.0.1:0", "--no-freeze", "--single"] {
        failure(
            &ground.sh(&format!(
                "exec \"$NBD_EXPORT\" serve --config agent.toml {beside}"
            )),
            2,
        );
    }
    failure(&ground.sh("exec \"$NBD_EXPORT\" serve --config missing"), 1);
    assert!(!fs::exists(ground.path("s")).unwrap());
}
