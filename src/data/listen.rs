//! The sockets that we listen on: for each worker one of its own at each address, so that the
//! kernel spreads clients over the workers and no two of them share a queue.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::config::plan;
use crate::net::{self, Liveness};

/// One worker's listening sockets, each with the name of its listener.
#[derive(Debug, Default)]
pub struct Bound(pub(super) Vec<(String, OwnedFd)>);

/// Binds every address of every listener, once for each worker.
///
/// # Errors
/// The listener, the address and the system's error, for the first that fails. Sockets bound
/// before are closed again.
pub fn bind_all(
    listeners: &[plan::Listener],
    workers: usize,
) -> Result<Vec<Bound>, (String, SocketAddr, io::Error)> {
    let mut all: Vec<Bound> = (0..workers).map(|_| Bound::default()).collect();
    for listener in listeners {
        for at in &listener.bind {
            let failed = |error| (listener.name.clone(), *at, error);
            net::probe_free(*at).map_err(failed)?;
            for bound in &mut all {
                let socket = net::listen_shared(*at, liveness(listener.tcp)).map_err(failed)?;
                bound.0.push((listener.name.clone(), socket));
            }
        }
    }
    Ok(all)
}

pub(super) fn liveness(tcp: plan::Tcp) -> Liveness {
    Liveness { keepalive: tcp.keepalive, user_timeout: tcp.user_timeout }
}
