//! Clients that mean harm, against the program: its memory and its time are bounded, and a good client is served meanwhile.

mod farewells;
mod handshakes;
mod payloads;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::disk::{Scratch, scratch};
use tests::program::{Host, built};

const MIB: u64 = 1 << 20;

/// Time in which a good client gets what it asks for, whatever others do: far more than it needs alone on a busy machine.
const GOOD_PATIENCE: Duration = Duration::from_secs(60);

/// An agent with a frozen volume and a writable one, at a Unix socket and at TCP.
struct Victim {
    host: Host,
    directory: Scratch,
}

/// The bytes of a connection, whatever carries it.
trait Wire: Read + Write + Send {}

impl<S: Read + Write + Send> Wire for S {}

impl Victim {
    fn new(more: &[&str]) -> Self {
        let directory = scratch();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("frozen"), vec![7; 8 << 20]).unwrap();
        fs::File::create(path("live")).unwrap().set_len(1 << 30).unwrap();
        let (frozen, live) = (format!("v={}", path("frozen")), format!("w={}", path("live")));
        let host = Host::serve(
            &[
                &[
                    &frozen[..],
                    "--writable",
                    &live,
                    "--socket",
                    &path("s"),
                    "--listen",
                    "127.0.0.1:0",
                    "--control",
                    &path("control"),
                ],
                more,
            ]
            .concat(),
        );
        // Whoever attacks needs descriptors too.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        Self { host, directory }
    }

    fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("s")).unwrap();
        stream.set_read_timeout(Some(GOOD_PATIENCE)).unwrap();
        stream
    }

    /// Where it listens on TCP.
    fn tcp_address(&self) -> String {
        let listening = fs::read_to_string(format!("/proc/{}/net/tcp", self.host.pid())).unwrap();
        let inodes: Vec<String> = fs::read_dir(format!("/proc/{}/fd", self.host.pid()))
            .unwrap()
            .filter_map(|fd| {
                let target = fs::read_link(fd.ok()?.path()).ok()?;
                let target = target.to_str()?;
                Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
            })
            .collect();
        let port = listening.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let ours = fields[3] == "0A" && inodes.iter().any(|inode| inode == fields[9]);
            ours.then(|| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
        });
        format!("127.0.0.1:{}", port.expect("it listens on TCP"))
    }

    fn tcp(&self, address: &str) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(GOOD_PATIENCE)).unwrap();
        stream
    }

    /// Most memory that it ever took, in MiB.
    fn peak_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.host.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }

    /// A client that keeps to the rules reads some of an export, in time.
    fn serves_good_clients(&self, uri: &str) {
        let begun = Instant::now();
        let output = Command::new("timeout")
            .arg(GOOD_PATIENCE.as_secs().to_string())
            .args(["nbdcopy", uri, "null:"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "a good client after {:?}: {stderr}",
            begun.elapsed()
        );
    }

    fn unix_uri(&self) -> &str {
        self.host.uri("v")
    }

    /// It lives, and ends in good order.
    fn ends_well(self) {
        assert!(built("nbd-export").exists());
        assert!(self.host.terminate().success());
    }
}

/// An option as it travels, that claims a length.
fn option(code: u32, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Client flags, and EXPORT_NAME: the shortest way into transmission.
fn enter(export: &str) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    let length = u32::try_from(export.len()).unwrap();
    bytes.extend_from_slice(&option(1, length, export.as_bytes()));
    bytes
}

/// A request as it travels without extended headers.
fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// Reads the greeting, and size and flags behind EXPORT_NAME.
fn entered(wire: &mut dyn Wire, export: &str) {
    wire.write_all(&enter(export)).unwrap();
    wire.read_exact(&mut [0; 18 + 10]).unwrap();
}
