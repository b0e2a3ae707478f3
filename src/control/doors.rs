//! The sockets of the admin API: made at start, before privileges change and readiness is told.
//!
//! The unix socket is private to its user from its first moment on, and is taken away again at
//! the end. Never takes the place of a socket behind which somebody answers.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::plan::Admin;

/// Clients that may wait to be let in. The command line and a scraper or two: few.
const BACKLOG: i32 = 64;

/// The doors that the plan asks for, bound and listening. Dropping them closes them.
#[derive(Debug, Default)]
pub struct Doors {
    pub unix: Option<UnixDoor>,
    pub http: Option<TcpListener>,
}

/// A listening unix socket and the file that is its name. Dropping it removes the file.
#[derive(Debug)]
pub struct UnixDoor {
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode: a file that somebody else has put there meanwhile is not ours to remove.
    identity: (u64, u64),
}

impl Doors {
    /// Binds what the plan names. An error says which address or path, and what to do.
    pub fn open(plan: &Admin) -> io::Result<Self> {
        let unix = plan.socket.as_deref().map(UnixDoor::open).transpose()?;
        let http = plan.http.map(open_http).transpose()?;
        Ok(Doors { unix, http })
    }
}

impl UnixDoor {
    fn open(path: &Path) -> io::Result<Self> {
        let open = || {
            make_directory(path)?;
            clear(path)?;
            let listener = bind(path)?;
            let made = fs::symlink_metadata(path)?;
            Ok(UnixDoor { listener, path: path.to_owned(), identity: (made.dev(), made.ino()) })
        };
        open().map_err(|error: io::Error| told(&format!("admin socket {}", path.display()), &error))
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("admin socket {} stays behind: {error}", self.path.display());
        }
    }
}

/// One level: a missing parent's parent is a mistake in the path more often than a wish.
fn make_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    match directory.map(|directory| fs::DirBuilder::new().mode(0o755).create(directory)) {
        Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes the socket that a process which is no more has left behind.
fn clear(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let text =
            "there is a file, and it is not a socket: remove it, or set `admin.socket` to another path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    if answers(path)? {
        let text = "another tidegate is running: it answers on this socket; stop it, or set \
                    `admin.socket` to another path";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    fs::remove_file(path)
}

/// Does somebody listen there? A full queue (EAGAIN) is somebody too.
fn answers(path: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // On Linux the file takes its mode from the socket, less the umask: set before the bind,
    // there is no moment at which anybody else could connect.
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?; // an odd umask takes too much away
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from(socket))
}

fn open_http(address: SocketAddr) -> io::Result<TcpListener> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?; // or a restart would wait for the last scraper's TIME_WAIT
        if address.is_ipv6() {
            socket.set_only_v6(true)?; // what the plan says and no more
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|error: io::Error| told(&format!("admin.http {address}"), &error))
}

/// The error with what it is about before it and what to do after it. Its kind stays.
fn told(what: &str, error: &io::Error) -> io::Error {
    let hint = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::PermissionDenied, _) => {
            ": run as the user that owns the directory, or let systemd make it (RuntimeDirectory=tidegate)"
        }
        (io::ErrorKind::AddrInUse, Some(_)) => {
            ": another process listens there; stop it, or choose another port"
        }
        (io::ErrorKind::NotFound, _) => ": the directory above it is missing",
        _ => "",
    };
    io::Error::new(error.kind(), format!("{what}: {error}{hint}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::control::fixture::scratch;

    fn open(path: &Path) -> io::Result<Doors> {
        Doors::open(&Admin { socket: Some(path.to_owned()), http: None })
    }

    #[test]
    fn the_socket_is_private_from_the_start_and_gone_at_the_end() {
        let directory = scratch("doors");
        let path = directory.join("admin.sock");
        let doors = open(&path).expect("opens");
        let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&directory) | 0o055, 0o755, "and for others what the umask leaves of it");
        UnixStream::connect(&path).expect("it listens");
        drop(doors);
        assert!(!path.exists());
        fs::remove_dir(&directory).expect("empty");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = scratch("stale");
        drop(UnixListener::bind(&path).expect("binds")); // closed, but the file stays
        let first = open(&path).expect("the stale one is replaced");
        let error = open(&path).expect_err("the first one lives");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another tidegate is running"), "{error}");
        UnixStream::connect(&path).expect("the first one is unharmed");
        drop(first);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let path = scratch("file");
        fs::write(&path, "precious").expect("writes");
        let error = open(&path).expect_err("not ours");
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
        fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_socket_of_somebody_else_at_our_path_is_not_removed() {
        let path = scratch("swapped");
        let doors = open(&path).expect("opens");
        fs::remove_file(&path).expect("somebody cleans up");
        let _theirs = UnixListener::bind(&path).expect("and binds");
        drop(doors);
        assert!(path.exists());
        fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_path_too_deep_and_a_port_in_use_say_so() {
        let error = open(Path::new("/nonexistent/deep/admin.sock")).expect_err("two levels missing");
        assert!(error.to_string().contains("/nonexistent/deep/admin.sock"), "{error}");
        assert!(error.to_string().contains("the directory above it is missing"), "{error}");
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let http = Some(taken.local_addr().expect("bound"));
        let error = Doors::open(&Admin { socket: None, http }).expect_err("taken");
        assert!(error.to_string().contains("another process listens there"), "{error}");
    }
}
