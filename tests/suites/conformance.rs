//! The conformance matrix names its tests: a test that was renamed or lost is seen.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.clone(), fs::read_to_string(path).unwrap()));
        }
    }
}

/// `module::name`, as the matrix writes tests.
fn test_name(code: &str) -> Option<(&str, &str)> {
    let (module, name) = code.split_once("::")?;
    let is_word = |word: &str| {
        word.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    (is_word(module) && is_word(name)).then_some((module, name))
}

/// Whether a text has a function of that name that is run as a test.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_named = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")
            .is_some_and(|rest| rest.split('(').next() == Some(name))
    };
    let is_run = |at: usize| {
        let above = lines[..at].iter().rev();
        above
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
            .any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
    };
    (0..lines.len()).any(|at| is_named(lines[at]) && is_run(at))
}

#[test]
fn what_is_no_test_shows_nothing() {
    let text = "#[test]\nfn one() {}\n/// Says.\n#[tokio::test(flavor = \"multi_thread\")]\n// Why.\nasync fn two(\n\
                #[test]\nfn other() {}\nfn three() {}\n#[test]\n\nfn four() {}\n// fn five()\n";
    let found: Vec<bool> = ["one", "two", "three", "four", "five", "on"]
        .iter()
        .map(|name| has_test(text, name))
        .collect();
    assert_eq!(found, [true, true, false, false, false, false]);
}

#[test]
fn every_test_of_the_matrix_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for package in ["volmap", "nbd-export", "proxy-client", "tests"] {
        sources(&root.join(package), &mut files);
    }
    let matrix = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut count = 0;
    for (module, name) in matrix.split('`').skip(1).step_by(2).filter_map(test_name) {
        let holds = |(path, text): &&(PathBuf, String)| {
            let in_file = path.file_stem().is_some_and(|stem| stem == module);
            let in_folder = path.ends_with(format!("{module}/mod.rs"));
            (in_file || in_folder) && has_test(text, name)
        };
        assert!(
            files.iter().find(holds).is_some(),
            "there is no test {module}::{name}"
        );
        count += 1;
    }
    assert!(count > 100, "only {count} tests are named");
}
