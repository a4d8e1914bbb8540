//! What whoever started the agent passed to it: listening sockets (systemd's socket activation), the descriptor of `--ready-fd`, the
//! connection of `--single`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use volmap::sys::inherited;

use crate::error::{Error, ErrorKind};

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;

/// Sockets that are taken from a service manager at most: far more than anybody listens on.
const PASSED_MAX: RawFd = 1024;

/// Where a socket that was passed listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PassedAddress {
    /// A Unix socket, with its path if it has one.
    Unix(Option<PathBuf>),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl PassedAddress {
    /// Why users of this machine whom nobody chose may be able to connect, unless the mode of a file keeps them out.
    pub fn lets_all_users_in(&self) -> Option<String> {
        let Self::Unix(path) = self else { return None };
        let Some(path) = path else {
            return Some(
                "a Unix socket without an absolute path has no file whose mode keeps anybody out".to_owned(),
            );
        };
        match fs::metadata(path) {
            Ok(file) if file.permissions().mode() & 0o002 == 0 => None,
            Ok(_) => Some(format!("every user may connect to {}", path.display())),
            Err(error) => Some(format!(
                "the file mode of {} is not known: {error}",
                path.display()
            )),
        }
    }
}

/// A listening socket that was passed.
#[derive(Debug)]
pub struct PassedSocket {
    /// The socket.
    pub socket: OwnedFd,
    /// Where it listens.
    pub address: PassedAddress,
}

/// The connection of an agent that serves one client.
#[derive(Debug)]
pub enum Stdio {
    /// One Unix stream socket.
    Socket(OwnedFd),
    /// Two pipes.
    Pipes {
        /// From the client.
        input: OwnedFd,
        /// To the client.
        output: OwnedFd,
    },
}

/// What was passed to the agent beside its arguments.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets.
    pub sockets: Vec<PassedSocket>,
    /// Standard input and output, where they are the connection.
    pub stdio: Option<Stdio>,
    /// Where to tell that the agent can serve.
    pub ready: Option<File>,
    /// The socket of a service manager that waits to be told so.
    pub notify: Option<OsString>,
}

impl Inherited {
    /// Takes it all. To be called before the process opens or starts anything.
    ///
    /// # Errors
    /// [`ErrorKind::Listen`] for a descriptor that cannot be listened on, [`ErrorKind::Usage`] for one that the command line
    /// names and that is not there.
    pub fn take(single: bool, ready: Option<RawFd>) -> Result<Self, Error> {
        let [pid, count, _names, _pidfd, notify] = inherited::take_variables([
            "LISTEN_PID",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
            "LISTEN_PIDFDID",
            "NOTIFY_SOCKET",
        ]);
        let sockets = match passed_to_us(pid.as_deref(), count.as_deref())? {
            Some(count) => (FIRST_PASSED..FIRST_PASSED + count)
                .map(listening)
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Self {
            sockets,
            ready: ready.map(writable).transpose()?,
            stdio: if single { Some(take_stdio()?) } else { None },
            notify,
        })
    }
}

/// How many descriptors were passed to this very process; those of another are none of ours.
fn passed_to_us(pid: Option<&OsStr>, count: Option<&OsStr>) -> Result<Option<RawFd>, Error> {
    let (Some(pid), Some(count)) = (pid, count) else {
        return Ok(None);
    };
    if pid.to_str().and_then(|pid| pid.parse().ok()) != Some(process::id()) {
        return Ok(None);
    }
    let count: Option<RawFd> = count.to_str().and_then(|count| count.parse().ok());
    match count {
        Some(0) => Ok(None),
        Some(count @ 1..=PASSED_MAX) => Ok(Some(count)),
        _ => Err(Error::new(
            ErrorKind::Listen,
            format!("LISTEN_FDS is to be a number from 0 to {PASSED_MAX}"),
        )),
    }
}

fn listening(number: RawFd) -> Result<PassedSocket, Error> {
    let refused = |why: &str| {
        Error::new(
            ErrorKind::Listen,
            format!(
                "descriptor {number} of LISTEN_FDS {why}: pass listening Unix or TCP sockets (ListenStream=)"
            ),
        )
    };
    let socket = inherited::take(number).map_err(|why| {
        Error::caused(
            ErrorKind::Listen,
            format!("descriptor {number} of LISTEN_FDS"),
            why,
        )
    })?;
    match getsockopt(&socket, sockopt::SockType) {
        Ok(SockType::Stream) => {}
        Ok(_) => return Err(refused("is no stream socket")),
        Err(Errno::ENOTSOCK) => return Err(refused("is no socket")),
        Err(error) => return Err(refused(error.desc())),
    }
    if !getsockopt(&socket, sockopt::AcceptConn).unwrap_or(false) {
        return Err(refused(
            "does not listen (Accept=yes is not supported: see --single)",
        ));
    }
    let address = address(socket.as_fd()).ok_or_else(|| refused("is neither a Unix nor a TCP socket"))?;
    Ok(PassedSocket { socket, address })
}

fn address(socket: BorrowedFd<'_>) -> Option<PassedAddress> {
    use std::os::fd::AsRawFd;

    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    match name.family()? {
        AddressFamily::Unix => {
            let path = name.as_unix_addr()?.path().map(PathBuf::from);
            // Another's working directory is not ours.
            Some(PassedAddress::Unix(path.filter(|path| path.is_absolute())))
        }
        AddressFamily::Inet => {
            let address = *name.as_sockaddr_in()?;
            Some(PassedAddress::Tcp(std::net::SocketAddrV4::from(address).into()))
        }
        AddressFamily::Inet6 => {
            let address = *name.as_sockaddr_in6()?;
            Some(PassedAddress::Tcp(std::net::SocketAddrV6::from(address).into()))
        }
        _ => None,
    }
}

/// The descriptor of `--ready-fd`.
fn writable(number: RawFd) -> Result<File, Error> {
    let usage = |why: io::Error| Error::caused(ErrorKind::Usage, format!("--ready-fd {number}"), why);
    let ready = inherited::take(number).map_err(|why| match why.kind() {
        io::ErrorKind::InvalidInput => usage(io::Error::other(
            "it is a standard stream, or a socket of LISTEN_FDS: give a descriptor of its own",
        )),
        _ => usage(why),
    })?;
    let flags = fcntl(&ready, FcntlArg::F_GETFL).map_err(|errno| usage(errno.into()))?;
    match OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE {
        OFlag::O_WRONLY | OFlag::O_RDWR => Ok(ready.into()),
        _ => Err(usage(io::Error::other("it cannot be written to"))),
    }
}

/// Takes standard input and output as the connection. What is printed by mistake from now on goes nowhere, and not into it; so does
/// the log, if whoever started us gave the connection as standard error too.
///
/// It has no rules for peers beyond this machine: those are of listeners, so that a TCP connection is none to take here.
fn take_stdio() -> Result<Stdio, Error> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let system = |why: io::Error| Error::caused(ErrorKind::System, "--single", why);
    let kind =
        |of: BorrowedFd<'_>| -> Result<FileStat, Error> { fstat(of).map_err(|errno| system(errno.into())) };
    let (from, to) = (kind(stdin.as_fd())?, kind(stdout.as_fd())?);
    let is = |stat: &FileStat, flag: SFlag| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == flag;
    let input = stdin.as_fd().try_clone_to_owned().map_err(system)?;
    let same = |one: &FileStat, other: &FileStat| (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
    let stdio = if is(&from, SFlag::S_IFSOCK) && same(&from, &to) && is_unix_stream(input.as_fd()) {
        Stdio::Socket(input)
    } else if is(&from, SFlag::S_IFIFO) && is(&to, SFlag::S_IFIFO) {
        let output = stdout.as_fd().try_clone_to_owned().map_err(system)?;
        Stdio::Pipes { input, output }
    } else {
        return Err(Error::new(
            ErrorKind::Usage,
            "--single serves the client at standard input and output: they have to be one Unix stream socket, or two \
             pipes; for other clients use --listen",
        ));
    };
    let nowhere = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(system)?;
    dup2_stdin(&nowhere).map_err(|errno| system(errno.into()))?;
    dup2_stdout(&nowhere).map_err(|errno| system(errno.into()))?;
    let told = kind(io::stderr().as_fd())?;
    if same(&told, &from) || same(&told, &to) {
        dup2_stderr(&nowhere).map_err(|errno| system(errno.into()))?;
    }
    Ok(stdio)
}

fn is_unix_stream(socket: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd;

    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd());
    name.is_ok_and(|name| name.family() == Some(AddressFamily::Unix))
        && getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_as_closed_as_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let address = PassedAddress::Unix(Some(path.clone()));
        assert!(address.lets_all_users_in().is_some(), "no file, no mode");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for (mode, open) in [
            (0o600, false),
            (0o660, false),
            (0o755, false),
            (0o666, true),
            (0o602, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(address.lets_all_users_in().is_some(), open, "{mode:o}");
        }
        assert!(PassedAddress::Unix(None).lets_all_users_in().is_some());
        let tcp = PassedAddress::Tcp("127.0.0.1:1".parse().unwrap());
        assert_eq!(tcp.lets_all_users_in(), None, "that has rules of its own");
    }

    #[test]
    fn a_connection_of_one_client_is_a_unix_stream() {
        use std::net::{TcpListener, TcpStream};
        use std::os::unix::net::{UnixDatagram, UnixStream};

        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(is_unix_stream(stream.as_fd()));
        let (datagrams, _other) = UnixDatagram::pair().unwrap();
        assert!(!is_unix_stream(datagrams.as_fd()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!is_unix_stream(tcp.as_fd()));
    }

    #[test]
    fn only_what_was_passed_to_this_process_is_taken() {
        let ours = process::id().to_string();
        let count = |pid: &str, count: &str| passed_to_us(Some(OsStr::new(pid)), Some(OsStr::new(count)));
        assert_eq!(count(&ours, "2").unwrap(), Some(2));
        assert_eq!(count(&ours, "0").unwrap(), None);
        assert_eq!(count("1", "2").unwrap(), None);
        assert_eq!(count("", "2").unwrap(), None);
        assert_eq!(passed_to_us(None, Some(OsStr::new("2"))).unwrap(), None);
        assert_eq!(passed_to_us(Some(OsStr::new(&ours)), None).unwrap(), None);
        assert!(count(&ours, "1024").is_ok());
        for bad in ["1025", "-1", "", "many", "4294967297"] {
            assert_eq!(count(&ours, bad).unwrap_err().kind(), ErrorKind::Listen, "{bad}");
        }
    }
}
