//! The host is killed in the middle of writes.

use std::fs;

use tests::cow::log::Oracle;
use tests::cow::served::Served;
use tests::cow::volume::assert_same;
use tests::needs;
use tests::program::fails;

use super::SIZE;

#[test]
fn a_host_that_is_killed_leaves_the_origin_intact() {
    needs!("zstd");
    let mut served = Served::new(SIZE);
    for round in 0..3 {
        let writers = served.writers(4, 7 + round, true);
        writers.await_requests(20);
        let old = served.ask(&["freeze", "vol", "--as", "old"]);
        writers.await_requests(100);
        served.kill();
        writers.stop();

        // Everything that was replied to is there. A request in flight may be there in parts.
        let origin = fs::read(served.path("origin")).unwrap();
        let mut content = served.oracle.settled();
        let mut in_flight = Vec::new();
        for log in served.oracle.logs() {
            let extent = log.extent();
            assert!(extent.sent - extent.replied <= 1, "one request at a time");
            for change in log.first(extent.replied) {
                change.apply(&mut content);
            }
            in_flight.extend(log.first(extent.sent).split_off(extent.replied));
        }
        for change in &in_flight {
            let mut done = content.clone();
            change.apply(&mut done);
            let start = usize::try_from(change.offset).unwrap();
            for at in start..start + usize::try_from(change.len).unwrap() {
                assert!(
                    [content[at], done[at]].contains(&origin[at]),
                    "{change:?} at {at}"
                );
                content[at] = origin[at];
            }
        }
        assert_same(&origin, &content, "the origin after the kill");
        served.oracle = Oracle::new(origin);

        served.start();
        assert_eq!(served.list()["volumes"][0]["frozen"], serde_json::json!([]));
        let image = served.path("late");
        let error = fails("proxy-client", 1, &["backup", old.trim(), "--output", &image]);
        assert_eq!(error["kind"], "host-refused");
        assert_same(&served.client().read_all().unwrap(), &content, "served again");
        let new = served.ask(&["freeze", "vol", "--as", "next"]);
        served.assert_backs_up(new.trim(), &content);
        served.ask(&["thaw", "vol@next"]);
    }
}
