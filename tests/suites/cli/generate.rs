//! Manual pages and completions of both programs, as a package would install them.

use std::fs;
use std::process::Command;

use tests::program;

#[test]
fn completions_are_scripts_that_a_shell_takes() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["nbd-export", "proxy-client"] {
        let output = program::run(name, &["generate", "completions", "bash"]);
        assert!(output.status.success());
        let path = directory.path().join(name);
        fs::write(&path, &output.stdout).unwrap();
        let offered = Command::new("bash")
            .arg("-c")
            .arg(
                "source \"$1\" && words=($(complete -p $2)) && for at in ${!words[@]}; do \
                 [ ${words[at]} = -F ] && asked=${words[at + 1]}; done; \
                 COMP_WORDS=($2 '') COMP_CWORD=1 && $asked $2 '' $2; printf '%s\\n' \"${COMPREPLY[@]}\"",
            )
            .args(["bash", path.to_str().unwrap(), name])
            .output()
            .unwrap();
        let offered = String::from_utf8(offered.stdout).unwrap();
        assert!(
            offered.lines().any(|word| word == "generate"),
            "{name}: {offered}"
        );
    }
}

#[test]
fn every_verb_has_a_page() {
    for (name, verb) in [("nbd-export", "serve"), ("proxy-client", "backup")] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let output = program::run(name, &["generate", "man", path]);
        assert!(output.status.success() && output.stdout.is_empty());
        let page = fs::read_to_string(directory.path().join(format!("{name}-{verb}.8"))).unwrap();
        assert!(page.contains(&format!(".TH {name}-{verb} 8")), "{page}");
    }
}
