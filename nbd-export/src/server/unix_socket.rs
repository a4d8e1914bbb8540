//! Unix sockets as files: private, never taken from a living process, removed at the end.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket as UnboundSocket};

/// Time that another agent gets to open its socket in the same directory: it takes far less than a millisecond.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two looks at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Connections that may wait to be accepted, as many as tokio lets wait at TCP (the kernel takes no more than `net.core.somaxconn`). A client
/// of libnbd that finds no place does not wait: it fails with EAGAIN.
const BACKLOG: u32 = 1024;

/// Why a Unix socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process answers there.
    #[error("another process is listening on {}", .0.display())]
    InUse(PathBuf),
    /// Something else than a socket is there, and it is not ours to remove.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening Unix socket, mode 0600. Its file is removed when it is dropped, unless somebody else's has taken its place.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that we made.
    file: (u64, u64),
}

impl UnixSocket {
    /// Listens at `path`. A socket file that nobody answers at is left over from a process that died, and is
    /// replaced.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |source| BindError::Io {
            path: path.to_owned(),
            source,
        };
        let _alone = alone(path)?;
        clear(path)?;
        let socket = UnboundSocket::new_stream().map_err(io)?;
        // The mode of the socket becomes that of the file, so there is no instant at which others could connect.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| io(errno.into()))?;
        socket.bind(path).map_err(io)?;
        let listener = socket.listen(BACKLOG).map_err(io)?;
        let made = fs::symlink_metadata(path).map_err(io)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (made.dev(), made.ino()),
        })
    }

    /// The next connection.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        Ok(stream)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Keeps other agents from binding in this directory at the same time: between the look at a stale socket and its removal, and
/// between bind and listen, one of two would remove the socket of the other. The lock goes when it is dropped.
fn alone(path: &Path) -> Result<Option<File>, BindError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).map_err(|source| BindError::Io {
        path: path.to_owned(),
        source,
    })?;
    let begun = Instant::now();
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PAUSE),
            // Whoever may read the directory may lock it for as long as he likes, and some file systems know no locks: no reason not
            // to serve.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "its directory cannot be locked");
                return Ok(None);
            }
        }
    }
}

/// Removes a socket file that nobody answers at.
fn clear(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(there) if !there.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(error)),
        Ok(_) => Err(BindError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_agents_that_find_a_stale_socket_together_one_gets_it() {
        const AGENTS: usize = 4;
        let dir = tempfile::tempdir().unwrap();
        for round in 0..100 {
            let path = dir.path().join(format!("s{round}"));
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let together = std::sync::Arc::new(std::sync::Barrier::new(AGENTS));
            let agents: Vec<_> = (0..AGENTS)
                .map(|_| {
                    let (path, together) = (path.clone(), std::sync::Arc::clone(&together));
                    tokio::spawn(async move {
                        together.wait();
                        UnixSocket::bind(&path)
                    })
                })
                .collect();
            let mut bound = Vec::new();
            for agent in agents {
                bound.extend(agent.await.unwrap());
            }
            assert_eq!(bound.len(), 1, "round {round}");
            UnixStream::connect(&path).unwrap();
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = UnixSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(matches!(UnixSocket::bind(&path), Err(BindError::InUse(_))));
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let replaced = UnixSocket::bind(&path).unwrap();
        // What has taken our place is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"theirs").unwrap();
        drop(replaced);
        assert!(path.exists());
        assert!(matches!(UnixSocket::bind(&path), Err(BindError::NotASocket(_))));
    }
}
