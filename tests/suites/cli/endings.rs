//! How an agent ends, by whatever asks it to.

use nix::sys::signal::Signal;
use tests::program::Host;

#[test]
fn every_polite_signal_gives_back_what_was_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("volume"), [1; 4096]).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let host = Host::serve(&[&at("volume"), "--socket", &at("s"), "--control", &at("c")]);
        assert_eq!(host.end_by(signal).code(), Some(0), "{signal}");
        for socket in ["s", "c"] {
            assert!(!dir.path().join(socket).exists(), "{signal} leaves {socket}");
        }
        // A volume that is still immutable cannot be opened for this.
        std::fs::OpenOptions::new()
            .append(true)
            .open(at("volume"))
            .unwrap_or_else(|error| panic!("{signal}: {error}"));
    }
}
