//! `nbd-export cleanup` and what killed agents leave of LVM: it goes, and nothing of the living or of the admin does.

use serde_json::Value;
use tests::guest::{Process, Rig};
use tests::needs_guests;

use super::lvm_thin::{FAST, LAYERED, SLOW, Site};

/// What `cleanup` says: kind, name and state of each.
fn cleanup(site: &Site, more: &str) -> Vec<(String, String, String)> {
    let json = site.guest.run(&format!("nbd-export cleanup --json {more}"));
    let found: Value = serde_json::from_str(&json).unwrap();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows = found["leftovers"].as_array().unwrap();
    rows.iter()
        .map(|row| (word(row, "kind"), word(row, "path"), word(row, "state")))
        .collect()
}

fn snapshots(site: &Site) -> Vec<String> {
    let names = site
        .guest
        .run("lvs --noheadings -o vg_name,lv_name --separator / -S 'lv_role=snapshot'");
    names.split_whitespace().map(str::to_owned).collect()
}

/// An agent that serves volumes, and the snapshots that it made.
fn serve(site: &Site, number: u32, volumes: &str) -> (Process, Vec<String>) {
    let before = snapshots(site);
    let (agent, _) = site.guest.serve(&format!(
        "{volumes} --snapshot-size 50% --socket /run/nbd{number} --control /run/control{number}"
    ));
    let made = snapshots(site).into_iter().filter(|name| !before.contains(name));
    (agent, made.collect())
}

fn kill(site: &Site, agent: Process) {
    site.guest.run(&format!("kill -9 {}", agent.pid));
    agent.wait();
}

fn as_found(kind: &str, names: &[String], state: &str) -> Vec<(String, String, String)> {
    let row = |name: &String| (kind.to_owned(), name.clone(), state.to_owned());
    names.iter().map(row).collect()
}

#[test]
fn what_killed_agents_leave_of_lvm_is_removed_and_nothing_else_is() {
    needs_guests!("lvm");
    let rig = Rig::new();
    let site = Site::boot(&rig, LAYERED, "/dev/mapper/pv");
    site.guest.run("lvcreate -qq -y -Wn -L 16M -n db vg /dev/ubdb");
    snapshots_of_the_dead(&site);
    metadata_snapshots(&site);
}

fn snapshots_of_the_dead(site: &Site) {
    let (dead, mut left) = serve(site, 1, "db=/dev/vg/db tv=/dev/vg/tv");
    assert_eq!(left.len(), 2, "{left:?}");
    let (living, used) = serve(site, 2, "db=/dev/vg/db");
    // What is the admin's has some of the marks of ours, or all but those of this machine.
    let ours = "--addtag volmap -n volmap_0123456789abcdef0123456789abcdef";
    site.guest.run(&format!(
        "lvcreate -qq -y -s -pr -L 4M --addtag volmap -n volmap_admin vg/db
         lvcreate -qq -y -s -pr -L 4M -n volmap_0123456789abcdef0123456789abcdee vg/db
         lvcreate -qq -y -s -pr -L 4M {ours} vg/db"
    ));
    assert_eq!(
        cleanup(site, ""),
        as_found(
            "snapshot",
            &["vg/volmap_0123456789abcdef0123456789abcdef".to_owned()],
            "unclear"
        ),
        "they live"
    );
    site.guest
        .run("lvremove -qq -y vg/volmap_0123456789abcdef0123456789abcdef");
    kill(site, dead);
    // As where another machine made it that has the same id: it is not active here.
    let elsewhere = site
        .guest
        .run("lvs --noheadings -o vg_name,lv_name --separator / -S 'origin=tv && lv_device_open!=open'")
        .trim()
        .to_owned();
    assert!(left.contains(&elsewhere), "{elsewhere}");
    site.guest.run(&format!("lvchange -qq -an {elsewhere}"));
    let unclear = as_found("snapshot", std::slice::from_ref(&elsewhere), "unclear");
    assert!(cleanup(site, "").contains(&unclear[0]));
    site.guest.run(&format!("lvchange -qq -ay {elsewhere}"));
    // One that somebody looks into, and one that somebody writes to.
    let reader = site
        .guest
        .start(&format!("exec 3</dev/{}; echo open; exec sleep 1000", left[0]));
    site.guest.run(&format!(
        "while ! lvs --noheadings -o lv_device_open {} | grep -q open; do sleep 0.1; done",
        left[0]
    ));
    site.guest.run(&format!("lvchange -qq -prw {}", left[1]));
    assert_eq!(cleanup(site, ""), as_found("snapshot", &left[1..], "unclear"));
    let stays = site.guest.try_run("nbd-export cleanup --yes");
    assert_eq!(stays.status, 1, "{}", stays.stdout);
    site.guest
        .run(&format!("kill {}; lvchange -qq -pr {}", reader.pid, left[1]));
    reader.wait();
    left.sort();
    let mut shown = cleanup(site, "");
    shown.sort();
    assert_eq!(shown, as_found("snapshot", &left, "there"));
    let all = snapshots(site);
    assert!(
        left.iter().all(|name| all.contains(name)),
        "they were only shown: {all:?}"
    );
    // After a reboot nothing is in /run.
    site.guest.run("rm -r /run/volmap");
    let mut removed = cleanup(site, "--yes");
    removed.sort();
    assert_eq!(removed, as_found("snapshot", &left, "removed"));
    let rest = snapshots(site);
    assert!(!rest.iter().any(|name| left.contains(name)), "{rest:?}");
    assert!(
        used.iter().all(|name| rest.contains(name)),
        "the living one's: {rest:?}"
    );
    assert_eq!(rest.len(), used.len() + 2, "the admin's: {rest:?}");
    assert!(cleanup(site, "--yes").is_empty());
    site.guest.run(&format!("kill {}", living.pid));
    assert_eq!(living.wait().status, 0);
    site.guest
        .run("lvremove -qq -y vg/volmap_admin vg/volmap_0123456789abcdef0123456789abcdee");
    assert!(snapshots(site).is_empty(), "{:?}", snapshots(site));
    let suspended = site.guest.run("dmsetup info -c --noheadings -o suspended");
    assert!(!suspended.contains("Suspended"), "{suspended}");
    eprintln!("right: snapshots of the dead");
}

fn metadata_snapshots(site: &Site) {
    const POOL: &str = "vg-pool-tpool";
    site.guest.run(SLOW);
    let agent = site.until_it_holds_the_metadata();
    // However long a cleanup takes.
    site.guest.run(&format!("kill -STOP {}", agent.pid));
    assert!(cleanup(site, "--yes").is_empty(), "it lives");
    assert_ne!(site.metadata_snapshot(), "-");
    kill(site, agent);
    site.guest.run(FAST);
    let root = site.metadata_snapshot();
    assert_ne!(root, "-", "it has to be left behind");
    let pool = [POOL.to_owned()];
    let left = snapshots(site);
    assert_eq!(left.len(), 1, "{left:?}");

    // As after a reboot: the pool was away, and nothing is in /run.
    site.guest.run("vgchange -qq -an vg; rm -rf /run/volmap");
    let away = cleanup(site, "");
    assert!(
        away.iter()
            .any(|row| row.0 == "metadata-snapshot" && row.2 == "unclear"),
        "{away:?}"
    );
    site.guest.run("vgchange -qq -ay vg");
    assert_eq!(site.metadata_snapshot(), root);
    let both = |state| {
        [
            as_found("snapshot", &left, state),
            as_found("metadata-snapshot", &pool, state),
        ]
        .concat()
    };
    assert_eq!(cleanup(site, ""), both("there"));
    assert_eq!(site.metadata_snapshot(), root, "it was only shown");
    assert_eq!(cleanup(site, "--yes"), both("removed"));
    assert_eq!(site.metadata_snapshot(), "-");
    assert!(snapshots(site).is_empty());

    // One that we did not take.
    site.guest
        .run(&format!("dmsetup message {POOL} 0 reserve_metadata_snap"));
    let theirs = site.metadata_snapshot();
    assert!(cleanup(site, "--yes").is_empty());
    assert_eq!(site.metadata_snapshot(), theirs);
    site.guest
        .run(&format!("dmsetup message {POOL} 0 release_metadata_snap"));
    // And all goes on as ever.
    let (agent, _) = site.serve();
    site.end(agent);

    // Left in a pool that is removed then: nobody's business any more.
    site.guest.run(SLOW);
    let agent = site.until_it_holds_the_metadata();
    kill(site, agent);
    site.guest.run(FAST);
    site.guest.run("vgchange -qq -an vg");
    assert_eq!(
        site.guest.try_run("nbd-export cleanup --yes").status,
        1,
        "its pool is inactive"
    );
    site.guest.run("vgremove -qq -ff -y vg");
    assert!(cleanup(site, "--yes").is_empty());
    eprintln!("right: metadata snapshots");
}
