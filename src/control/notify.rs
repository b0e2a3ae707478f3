//! Tells the service manager how the daemon is: ready, reloading, stopping, alive.
//!
//! Speaks the datagram protocol of sd_notify(3) over a socket of its own that never blocks.
//! Without a service manager every call does nothing. A message that cannot be sent is dropped:
//! nobody could be told about it.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// How often the service manager wants a sign of life; `None` is never.
    pub watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` with `WATCHDOG_PID`.
    pub fn from_env() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let opened = Self::to(&path);
            opened.inspect_err(|error| tracing::warn!("NOTIFY_SOCKET {}: {error}", path.display())).ok()
        });
        Notifier { watchdog: sd_notify::watchdog_enabled(), ..socket.unwrap_or_default() }
    }

    /// To that socket; a leading `@` is the abstract namespace.
    pub fn to(path: &OsStr) -> io::Result<Self> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(Notifier { socket: Some(socket), watchdog: None })
    }

    /// Serving, at start and again after each reload.
    pub fn ready(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// A reload has begun; [`Notifier::ready`] ends it, whatever came of it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(_) => self.send(&[NotifyState::Reloading]),
        }
    }

    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, line: &str) {
        self.send(&[NotifyState::Status(line)]);
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!("service manager: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixture::scratch;

    fn heard(manager: &UnixDatagram) -> String {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).expect("a message");
        String::from_utf8(message[..length].to_vec()).expect("text")
    }

    #[test]
    fn each_message_is_what_the_manager_expects() {
        let path = scratch("notify");
        let manager = UnixDatagram::bind(&path).expect("binds");
        let notifier = Notifier::to(path.as_os_str()).expect("connects");
        notifier.ready();
        assert_eq!(heard(&manager), "READY=1\n");
        notifier.reloading();
        let reloading = heard(&manager);
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("both").trim_end();
        assert!(since.parse::<u64>().is_ok_and(|usec| usec > 0), "{reloading}");
        notifier.status("3 connections");
        assert_eq!(heard(&manager), "STATUS=3 connections\n");
        notifier.alive();
        assert_eq!(heard(&manager), "WATCHDOG=1\n");
        notifier.stopping();
        assert_eq!(heard(&manager), "STOPPING=1\n");
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn an_abstract_socket_and_none_at_all_work_too() {
        let name = format!("tidegate-{}", fastrand::u64(..));
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("binds");
        Notifier::to(OsStr::new(&format!("@{name}"))).expect("connects").ready();
        assert_eq!(heard(&manager), "READY=1\n");
        Notifier::default().ready();
    }
}
