//! Does io_uring work here? Asked once, at the start, by doing what a worker does.
//!
//! A kernel may be too old, io_uring may be switched off (`kernel.io_uring_disabled`) or denied by
//! a container's seccomp filter. Each of these says no in a way of its own; a connection that
//! goes through says yes.

use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use super::driver::{Driver, Loop, Net};
use super::relay::{Patience, Tally};
use crate::sys::socket::{self, Liveness};

/// For the whole test; it needs a millisecond.
const LIMIT: Duration = Duration::from_secs(2);

/// # Errors
/// Why io_uring cannot be used here.
pub fn io_uring() -> io::Result<()> {
    Loop::new(Driver::IoUring, None)?.run(|net| async move {
        let tested = std::pin::pin!(one_connection(&net));
        net.within(LIMIT, tested).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    })
}

/// Two connections to ourselves, joined by a relay, and ended.
async fn one_connection(net: &Net) -> io::Result<()> {
    let liveness = Liveness { keepalive: None, user_timeout: None };
    let listener = net.listen(socket::listen_shared((Ipv4Addr::LOCALHOST, 0).into(), liveness)?)?;
    let at = listener.local_address()?;
    let mut ends = Vec::new();
    for _ in 0..2 {
        let dialled = net.dial(at).await?;
        let accepted = loop {
            listener.ready().await;
            if let Some((accepted, _)) = listener.accept()? {
                break net.adopt(accepted)?;
            }
        };
        ends.push((dialled, accepted));
    }
    let [(near, left), (right, far)] = <[_; 2]>::try_from(ends).map_err(|_| io::ErrorKind::Other)?;
    near.close();
    far.close();
    let patience = Patience { idle: Some(LIMIT), half_closed: Some(LIMIT), server: liveness };
    net.relay(left, right, patience, Rc::new(Tally::default())).await;
    Ok(())
}
