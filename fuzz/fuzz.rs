//! One fuzzer for all targets: `FUZZ_TARGET` names the one that is meant.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let wanted = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
        let mut targets = nbd_export::fuzzing::TARGETS
            .into_iter()
            .chain(proxy_client::fuzzing::TARGETS);
        let found = targets.find(|(name, _)| *name == wanted);
        found.unwrap_or_else(|| panic!("there is no target {wanted}")).1
    });
    target(input);
});
