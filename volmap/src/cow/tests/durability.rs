//! What a power failure could take: nothing that was replied to with FUA, or before a FLUSH.

use crate::cow::tests::bench::Bench;
use crate::limits::COPY_UNIT;

type Request = fn(&Bench, bool) -> std::io::Result<()>;

const REQUESTS: [Request; 4] = [
    |bench, fua| bench.live.write_at(COPY_UNIT - 5, &[7; 10], fua),
    |bench, fua| bench.live.trim(COPY_UNIT - 5, 4096, fua),
    |bench, fua| bench.live.write_zeroes(0, COPY_UNIT, false, fua),
    |bench, fua| bench.live.write_zeroes(0, COPY_UNIT, true, fua),
];

#[test]
fn fua_and_flush_leave_nothing_in_a_cache() {
    for frozen in [false, true] {
        for request in REQUESTS {
            let bench = Bench::full(2 * COPY_UNIT, 8);
            let _image = frozen.then(|| bench.live.freeze().unwrap());
            request(&bench, true).unwrap();
            assert!(!bench.origin.is_dirty());
            request(&bench, false).unwrap();
            assert!(bench.origin.is_dirty(), "nobody asked");
            bench.live.flush().unwrap();
            assert!(!bench.origin.is_dirty());
        }
    }
    let bench = Bench::full(2 * COPY_UNIT, 8);
    bench.live.write_zeroes_fast(0, COPY_UNIT, false, true).unwrap();
    assert!(!bench.origin.is_dirty());
}

#[test]
fn copies_are_never_in_a_cache() {
    let bench = Bench::full(2 * COPY_UNIT, 8);
    let _image = bench.live.freeze().unwrap();
    for request in REQUESTS {
        request(&bench, false).unwrap();
    }
    assert!(!bench.copy_area.is_dirty());
}
