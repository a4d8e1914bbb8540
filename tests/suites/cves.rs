//! What has broken other NBD servers, tried on the real program: each test names the report that it comes from. What can be shown
//! without a socket is shown beside the code; docs/conformance.md lists all of them.

use std::path::PathBuf;

use tests::disk::{Scratch, scratch};
use tests::program::Host;
use tests::raw_client::{RawClient, contexts, info};
use tests::volume;

const EXPORT_NAME: u32 = 1;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;
const LIST_META: u32 = 9;
const SET_META: u32 = 10;
const EXTENDED: u32 = 11;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 1 << 31 | 1;
const ERR_INVALID: u32 = 1 << 31 | 3;
const ERR_UNKNOWN: u32 = 1 << 31 | 6;

const READ: u16 = 0;
const WRITE: u16 = 1;
const BLOCK_STATUS: u16 = 7;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;

const MIB: u64 = 1 << 20;

/// A server of one frozen file, called `vm`.
struct Server {
    host: Host,
    directory: Scratch,
}

impl Server {
    fn of(size: u64) -> Self {
        let directory = scratch();
        let (file, socket) = (directory.path().join("vm.img"), directory.path().join("s"));
        volume::sparse(&file, size, &[0..4096, 8192..size.min(MIB)]);
        let (vm, socket) = (
            format!("vm={}", file.display()),
            socket.to_str().unwrap().to_owned(),
        );
        let host = Host::serve(&["--socket", &socket, "--freeze", "quiesce", &vm]);
        Self { host, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn client(&self) -> RawClient {
        RawClient::greeted(&self.socket())
    }

    /// A client in transmission, with extended headers and `base:allocation`, and the id of that.
    fn session(&self) -> (RawClient, u32) {
        let mut client = self.client();
        assert_eq!(client.ask(EXTENDED, b"").code, ACK);
        client.option(SET_META, &contexts(b"vm", &["base:allocation"]));
        let id = u32::from_be_bytes(client.reply().data[..4].try_into().unwrap());
        assert_eq!(client.reply().code, ACK);
        assert_eq!(client.ask(GO, &info(b"vm")).code, ACK);
        (client, id)
    }

    /// Good clients are served.
    fn assert_well(&self) {
        let (mut client, _) = self.session();
        client.request(0, READ, 7, 0, 512);
        let (code, cookie, payload) = client.chunk();
        assert_eq!((code, cookie, payload.len()), (1, 7, 520));
    }

    /// Most memory that the server had, in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.host.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// CVE-2017-15118 (qemu-nbd) and CVE-2022-26496 (nbd-server): names of more than 256 bytes smashed the stack.
#[test]
fn names_of_every_length_are_answered() {
    let server = Server::of(MIB);
    for length in [0, 1, 255, 256, 257, 4095, 4096] {
        let name = vec![b'n'; length];
        // The empty name is the only export there is.
        let wanted = if length == 0 { ACK } else { ERR_UNKNOWN };
        let mut client = server.client();
        assert_eq!(client.ask(INFO, &info(&name)).code, wanted, "{length}");
        assert_eq!(client.ask(EXTENDED, b"").code, ACK);
        for option in [LIST_META, SET_META] {
            let data = contexts(&name, &["base:allocation"]);
            assert_eq!(client.ask(option, &data).code, wanted, "{length}");
        }
        assert_eq!(client.ask(GO, &info(&name)).code, wanted, "{length}");
        let mut client = server.client();
        client.option(EXPORT_NAME, &name);
        if length > 0 {
            assert_eq!(client.hear_all(), b"", "{length}");
        }
    }
    for length in [4097, 60_000] {
        let name = vec![b'n'; length];
        let mut client = server.client();
        for option in [INFO, GO] {
            assert_eq!(client.ask(option, &info(&name)).code, ERR_INVALID, "{length}");
        }
        client.option(EXPORT_NAME, &name);
        assert_eq!(client.hear_all(), b"");
    }
    server.assert_well();
}

/// CVE-2020-10761 (qemu-nbd): an error text with the longest name in it was longer than a string may be.
#[test]
fn the_longest_name_fits_into_every_error() {
    let server = Server::of(MIB);
    let mut client = server.client();
    let name = "ü".repeat(2048);
    assert_eq!(client.ask(EXTENDED, b"").code, ACK);
    for (option, data) in [
        (INFO, info(name.as_bytes())),
        (GO, info(name.as_bytes())),
        (LIST_META, contexts(name.as_bytes(), &[])),
        (SET_META, contexts(name.as_bytes(), &["base:allocation"])),
    ] {
        let reply = client.ask(option, &data);
        assert_eq!(reply.code, ERR_UNKNOWN);
        assert!((1..=4096).contains(&reply.data.len()));
        assert!(std::str::from_utf8(&reply.data).is_ok());
    }
}

/// CVE-2017-15119 (qemu-nbd): 4 GiB of an option were read to throw them away. CVE-2022-26495 (nbd-server): a length of
/// 2^32-1 and one more are none.
#[test]
fn announced_lengths_are_not_waited_for() {
    let server = Server::of(MIB);
    for option in [EXPORT_NAME, LIST, INFO, GO, LIST_META, SET_META, 4711] {
        for length in [65_537, 1 << 31, u32::MAX] {
            let mut client = server.client();
            client.lying_option(option, length, b"");
            assert_eq!(client.hear_all(), b"", "{option} of {length}");
        }
    }
    // Lengths of names within an option that lie, too.
    for length in [u32::MAX, u32::MAX - 3, 1 << 31, 3] {
        let mut client = server.client();
        let data = [&length.to_be_bytes()[..], b"n\0\0"].concat();
        assert_eq!(client.ask(EXTENDED, b"").code, ACK);
        for option in [INFO, GO, LIST_META, SET_META] {
            assert_eq!(client.ask(option, &data).code, ERR_INVALID, "{length}");
        }
        // A count of queries that lies.
        let data = [&contexts(b"vm", &[])[..6], &length.to_be_bytes()[..]].concat();
        let code = client.ask(SET_META, &data).code;
        assert!(code >> 31 == 1 && code != ERR_UNSUP, "{length}: {code:x}");
    }
    server.assert_well();
    assert!(server.memory() < 128 << 10, "{} KiB", server.memory());
}

/// CVE-2017-9524 and CVE-2017-7539 (qemu-nbd), CVE-2013-7441 (nbd-server): a client that leaves, or babbles, in the middle of its
/// handshake ended the server.
#[test]
fn clients_that_leave_or_babble_cost_only_themselves() {
    let server = Server::of(MIB);
    let mut whole = vec![0, 0, 0, 3];
    for (option, data) in [
        (EXTENDED, Vec::new()),
        (SET_META, contexts(b"vm", &["base:allocation"])),
        (GO, info(b"vm")),
    ] {
        whole.extend(b"IHAVEOPT");
        whole.extend(option.to_be_bytes());
        whole.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        whole.extend(data);
    }
    for cut in 0..=whole.len() {
        let mut client = RawClient::connect(&server.socket());
        client.say(&whole[..cut]);
        client.leave();
        let mut client = RawClient::connect(&server.socket());
        client.say(&whole[..cut]);
        client.say(&volume::noise(cut as u64, 200));
        client.leave();
        let mut client = RawClient::connect(&server.socket());
        let mut broken = whole.clone();
        if let Some(byte) = broken.get_mut(cut) {
            *byte ^= 0x81;
        }
        client.say(&broken);
        client.leave();
    }
    server.assert_well();
}

/// CVE-2019-14851 (nbdkit): options in an order that nobody had thought of.
#[test]
fn options_in_every_order_are_answered() {
    let server = Server::of(MIB);
    let options: [(u32, Vec<u8>); 6] = [
        (INFO, info(b"vm")),
        (INFO, info(b"none")),
        (GO, info(b"none")),
        (EXTENDED, Vec::new()),
        (SET_META, contexts(b"vm", &["base:allocation"])),
        (LIST, Vec::new()),
    ];
    for first in 0..options.len() {
        for second in 0..options.len() {
            for third in 0..options.len() {
                let mut client = server.client();
                for n in [first, second, third] {
                    let (option, data) = &options[n];
                    client.ask(*option, data);
                }
                assert_eq!(client.ask(GO, &info(b"vm")).code, ACK);
            }
        }
    }
}

/// CVE-2025-47711 and CVE-2025-47712 (nbdkit): the longest block status, and one that is rounded over 2^32.
#[test]
fn block_status_at_every_boundary() {
    let size = (1 << 32) + 4096 + 1;
    let server = Server::of(size);
    let (mut client, id) = server.session();
    let boundaries = [
        1,
        511,
        4095,
        0xffff_f001,
        0xffff_ffff,
        1 << 32,
        (1 << 32) + 1,
        size - 1,
        size,
    ];
    for length in boundaries {
        for offset in [0, 1, 4095, size - length] {
            for flags in [0, 8] {
                client.request(flags, BLOCK_STATUS, 1, offset, length);
                if offset + length > size {
                    assert_eq!(client.error(), EINVAL, "{length} at {offset}");
                    continue;
                }
                let (code, _, payload) = client.chunk();
                assert_eq!((code, &payload[..4]), (6, &id.to_be_bytes()[..]));
                let lengths: Vec<u64> = payload[8..]
                    .chunks(16)
                    .map(|extent| u64::from_be_bytes(extent[..8].try_into().unwrap()))
                    .collect();
                let (last, before) = lengths.split_last().unwrap();
                let before: u64 = before.iter().sum();
                assert!(before < length && *last > 0 && offset + before + last <= size);
                assert!(flags == 0 || (before == 0 && *last <= length), "REQ_ONE");
            }
        }
    }
    for length in [0, size + 1, 1 << 63, u64::MAX] {
        client.request(0, BLOCK_STATUS, 1, 0, length);
        assert_eq!(client.error(), EINVAL, "{length}");
        client.request(0, BLOCK_STATUS, 1, u64::MAX, length.max(1));
        assert_eq!(client.error(), EINVAL, "{length}");
    }
    server.assert_well();
}

/// CVE-2011-0530 and CVE-2005-3534 (nbd-server): lengths of requests that ran over the buffer.
#[test]
fn lengths_of_writes_are_held_against_the_limit() {
    const PAYLOAD: u16 = 32;
    let server = Server::of(MIB);
    let (mut client, _) = server.session();
    for length in [0, 1, 65_535, 65_536, 65_537, MIB] {
        client.request(PAYLOAD, WRITE, 1, 0, length);
        client.say(&vec![0; usize::try_from(length).unwrap()]);
        assert_eq!(client.error(), EPERM, "{length}");
    }
    for length in [(32 << 20) + 1, 0xffff_ffff, u64::MAX - 27, u64::MAX] {
        let (mut client, _) = server.session();
        client.request(PAYLOAD, WRITE, 1, 0, length);
        assert_eq!(client.error(), EPERM, "{length}");
        assert_eq!(
            client.hear_all(),
            b"",
            "what cannot be passed over ends the session"
        );
    }
    for length in [MIB + 1, (32 << 20) + 1, 0xffff_ffff, u64::MAX] {
        client.request(0, READ, 1, 0, length);
        assert_eq!(client.error(), EINVAL, "{length}");
    }
    server.assert_well();
    assert!(server.memory() < 256 << 10, "{} KiB", server.memory());
}

/// Seen in nbdkit 1.32.5, which aborts: a client leaves while its replies are queued.
#[test]
fn a_client_that_leaves_its_replies_behind_costs_only_itself() {
    let server = Server::of(8 * MIB);
    for round in 0..20 {
        let (mut client, _) = server.session();
        for cookie in 0..200 {
            // Every third is refused.
            let offset = if cookie % 3 == 0 { u64::MAX } else { 0 };
            client.request(0, READ, cookie, offset, MIB);
            if round % 2 == 0 && cookie == 100 {
                break;
            }
        }
        client.leave();
    }
    server.assert_well();
}
