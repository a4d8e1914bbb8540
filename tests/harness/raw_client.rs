//! A client that says what a test wants it to say, byte by byte.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A server that says nothing for so long has forgotten us.
const PATIENCE: Duration = Duration::from_secs(60);

const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// One reply to an option.
#[derive(Debug)]
pub struct OptionReply {
    /// The option that it names.
    pub option: u32,
    /// What it says.
    pub code: u32,
    /// Its data.
    pub data: Vec<u8>,
}

impl OptionReply {
    /// Whether it is the last one to its option.
    pub fn is_last(&self) -> bool {
        self.code == 1 || self.code >> 31 == 1
    }
}

/// A connection.
pub struct RawClient {
    stream: UnixStream,
}

impl RawClient {
    /// Connects, and hears nothing yet.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    /// Connects and shakes hands up to the first option.
    pub fn greeted(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        assert_eq!(client.hear(18), b"NBDMAGICIHAVEOPT\0\x03");
        client.say(&[0, 0, 0, 3]);
        client
    }

    /// Sends bytes, if the server still listens.
    pub fn say(&mut self, bytes: &[u8]) {
        // A server that has hung up is seen by what it says, or does not.
        let _ = self.stream.write_all(bytes);
    }

    /// The next bytes, which must come.
    pub fn hear(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// All that comes before the server hangs up, which it must.
    pub fn hear_all(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server goes on"),
            // A reset is an end too.
            _ => bytes,
        }
    }

    /// The server may have hung up, or not; nobody cares.
    pub fn leave(self) {
        drop(self);
    }

    /// Sends an option.
    pub fn option(&mut self, code: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.lying_option(code, length, data);
    }

    /// Sends an option whose length is a lie.
    pub fn lying_option(&mut self, code: u32, length: u32, data: &[u8]) {
        self.say(&[&b"IHAVEOPT"[..], &code.to_be_bytes(), &length.to_be_bytes(), data].concat());
    }

    /// The next reply to an option.
    pub fn reply(&mut self) -> OptionReply {
        let header = self.hear(20);
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(header[..8], OPTION_REPLY.to_be_bytes());
        OptionReply {
            option: word(8),
            code: word(12),
            data: self.hear(word(16) as usize),
        }
    }

    /// Sends an option, and gives the last reply to it.
    pub fn ask(&mut self, code: u32, data: &[u8]) -> OptionReply {
        self.option(code, data);
        loop {
            let reply = self.reply();
            assert_eq!(reply.option, code);
            if reply.is_last() {
                return reply;
            }
        }
    }

    /// Sends an extended request.
    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u64) {
        let mut out = 0x21e4_1c71_u32.to_be_bytes().to_vec();
        out.extend(flags.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
        self.say(&out);
    }

    /// The next extended chunk: its type, its cookie and its payload.
    pub fn chunk(&mut self) -> (u16, u64, Vec<u8>) {
        let header = self.hear(32);
        assert_eq!(header[..4], 0x6e8a_278c_u32.to_be_bytes());
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        let code = u16::from_be_bytes(header[6..8].try_into().unwrap());
        let payload = self.hear(usize::try_from(long(24)).unwrap());
        (code, long(8), payload)
    }

    /// The error in a chunk that must be one.
    pub fn error(&mut self) -> u32 {
        let (code, _, payload) = self.chunk();
        assert_eq!(code >> 15, 1, "no error");
        u32::from_be_bytes(payload[..4].try_into().unwrap())
    }
}

/// Data of INFO and GO.
pub fn info(name: &[u8]) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap();
    [&length.to_be_bytes()[..], name, &[0, 0]].concat()
}

/// Data of LIST and SET_META_CONTEXT.
pub fn contexts(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let counted = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let mut data = counted(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(counted(query.as_bytes()));
    }
    data
}
