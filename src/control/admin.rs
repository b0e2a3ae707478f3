//! The admin API's connections: bounded in number, in time and in size.
//!
//! Knows HTTP and nothing of what is asked; the answers are `answers.rs`. Runs on the control
//! thread: a client that stalls here holds one of the places below for a minute at the most, and
//! nothing of the data plane.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::answers::{Body, Door, answer};
use super::desk::Desk;
use super::doors::{Doors, UnixDoor};

/// Connections at once, 64 together. Apart, so that whoever fills the open door cannot lock the
/// operator out of the private one. More wait in the kernel's queue.
const TCP_AT_ONCE: usize = 48;
const UNIX_AT_ONCE: usize = 16;
/// For a whole request head, and for the silence before the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Then the connection ends after the answer under way; a scraper just comes anew.
const LIFETIME: Duration = Duration::from_secs(50);
/// What an answer under way may still take then.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Heads larger than this are refused (431).
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// After an accept that failed for want of descriptors: time for some to be freed.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Serves every door until dropped. What remains of the doors is given back by the drop too.
pub async fn serve(doors: Doors, desk: Arc<Desk>) {
    let unix = async {
        match doors.unix {
            Some(door) => serve_unix(door, &desk).await,
            None => std::future::pending().await,
        }
    };
    let http = async {
        match doors.http {
            Some(listener) => serve_tcp(listener, &desk).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(unix, http);
}

async fn serve_unix(door: UnixDoor, desk: &Arc<Desk>) {
    let places = Arc::new(Semaphore::new(UNIX_AT_ONCE));
    let ours = door.listener.try_clone().and_then(UnixListener::from_std);
    let Some(listener) = opened(ours) else { return };
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        if let Some((stream, _)) = taken(listener.accept().await).await {
            let desk = Arc::clone(desk);
            tokio::spawn(async move {
                talk(stream, Door::Unix, desk).await;
                drop(place);
            });
        }
    }
}

async fn serve_tcp(listener: std::net::TcpListener, desk: &Arc<Desk>) {
    let places = Arc::new(Semaphore::new(TCP_AT_ONCE));
    let Some(listener) = opened(TcpListener::from_std(listener)) else { return };
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        if let Some((stream, _)) = taken(listener.accept().await).await {
            let desk = Arc::clone(desk);
            tokio::spawn(async move {
                talk(stream, Door::Tcp, desk).await;
                drop(place);
            });
        }
    }
}

fn opened<L>(listener: io::Result<L>) -> Option<L> {
    listener.inspect_err(|error| tracing::error!("admin API: cannot serve: {error}")).ok()
}

async fn taken<S>(accepted: io::Result<S>) -> Option<S> {
    match accepted {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::debug!("admin API: cannot accept: {error}");
            sleep(BACK_OFF).await;
            None
        }
    }
}

/// One connection, from the first request to the last.
async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, door: Door, desk: Arc<Desk>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<Response<Body>, Infallible>(answer(&request, door, &desk)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // How a client left is of no interest: there is nothing to repair and nobody to tell.
    if timeout(LIFETIME, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_WORDS, connection).await;
    }
}
