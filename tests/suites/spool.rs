//! An output that is slower than the reads: with a spool the host is not needed for longer than they take.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::cow::served::assert_image;
use tests::disk::{Scratch, scratch};
use tests::needs;
use tests::program::{Host, built, fails};

const SIZE: usize = 160 << 20;

struct Site {
    directory: Scratch,
    host: Option<Host>,
    content: Vec<u8>,
}

impl Site {
    fn new() -> Self {
        let directory = scratch();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let content = tests::volume::noise(3, SIZE);
        fs::write(path("volume"), &content).unwrap();
        let volume = format!("v={}", path("volume"));
        let host = Host::serve(&[&volume, "--freeze", "static", "--socket", &path("s")]);
        Self {
            directory,
            host: Some(host),
            content,
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn uri(&self) -> &str {
        self.host.as_ref().unwrap().uri("v")
    }

    fn kill_host(&mut self) {
        self.host.take().unwrap().kill();
    }

    /// A backup to a pipe that nobody reads yet.
    fn begin(&self, more: &[&str]) -> Child {
        Command::new(built("proxy-client"))
            .args(["backup", self.uri(), "--output", "-", "--reconnect", "1s"])
            .args(more)
            .env("RUST_LOG", "proxy_client=info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Takes what the pipe still has. Tells whether that was a backup.
    fn take(&self, mut job: Child) -> bool {
        let image = self.path("image");
        let mut file = fs::File::create(&image).unwrap();
        let mut stdout = job.stdout.take().unwrap();
        std::io::copy(&mut stdout, &mut file).unwrap();
        job.wait().unwrap().success()
    }
}

#[test]
fn what_is_read_outlives_the_host() {
    needs!("zstd");
    let mut site = Site::new();
    let spool = format!("{},size=1G", site.directory.path().display());
    let mut job = site.begin(&["--spool", &spool]);
    let mut lines = BufReader::new(job.stderr.take().unwrap()).lines();
    let all_read = lines.find(|line| line.as_ref().unwrap().contains("everything is read"));
    let all_read = all_read.expect("it is told").unwrap();
    assert!(!all_read.contains("spooled=0"), "{all_read}");
    site.kill_host();
    assert!(site.take(job), "{:?}", lines.collect::<Vec<_>>());
    assert_image(Path::new(&site.path("image")), &site.content);
}

/// The same without one: most of the volume is still to be read when the host goes.
#[test]
fn without_a_spool_a_slow_output_needs_the_host_to_the_end() {
    let mut site = Site::new();
    let mut job = site.begin(&[]);
    // It has begun, and then waits.
    let mut first = vec![0; 1 << 20];
    let stdout = job.stdout.as_mut().unwrap();
    stdout.read_exact(&mut first).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    site.kill_host();
    assert!(!site.take(job));
}

#[test]
fn one_that_is_too_small_costs_time_and_nothing_else() {
    needs!("zstd");
    let site = Site::new();
    let spool = format!("{},size=9M", site.directory.path().display());
    let job = site.begin(&["--spool", &spool]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(site.take(job));
    assert_image(Path::new(&site.path("image")), &site.content);
    // Nothing is left of it.
    let mut left: Vec<_> = fs::read_dir(site.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["image", "s", "volume"]);
}

#[test]
fn a_spool_that_cannot_be_is_told_before_anything_else() {
    let site = Site::new();
    let (image, missing) = (site.path("image"), site.path("missing"));
    let uri = site.uri();
    for (spool, code) in [(&missing[..], 1), ("", 2), (",size=1G", 2), ("/tmp,size=much", 2)] {
        let told = fails(
            "proxy-client",
            code,
            &["backup", uri, "--output", &image, "--spool", spool],
        );
        assert!(told["message"].as_str().unwrap().contains("spool"), "{told}");
        assert!(!Path::new(&image).exists() && !Path::new(&format!("{image}.partial")).exists());
    }
}
