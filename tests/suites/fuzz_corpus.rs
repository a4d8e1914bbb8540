//! What the fuzzers found is tried again in every run: no promise is broken by any input that they kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

type Target = fn(&[u8]);

fn targets() -> Vec<(&'static str, Target)> {
    nbd_export::fuzzing::TARGETS
        .into_iter()
        .chain(proxy_client::fuzzing::TARGETS)
        .collect()
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

#[test]
fn kept_inputs_break_no_promise() {
    for (name, target) in targets() {
        let mut count = 0;
        for entry in fs::read_dir(corpus().join(name)).unwrap() {
            target(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 10, "the corpus of {name} has {count} inputs");
    }
}

/// Every corpus belongs to a target: a renamed one would be tried no more, and nobody would notice.
#[test]
fn every_corpus_has_its_target() {
    let names: BTreeSet<String> = targets().into_iter().map(|(name, _)| name.to_owned()).collect();
    let found: BTreeSet<String> = fs::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, names);
}
