//! The loop of a worker thread: tasks, timers, and one of two drivers for the sockets.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::brake::Brake;
use super::clients::Listener;
use super::epoll::Epoll;
use super::executor::{Either, Executor, either};
use super::relay::{Ended, Patience, Tally};
use super::sock::Sock;
use super::timers::Timers;
use super::uring::Uring;
use crate::sys::cores;

/// The same call on whichever driver there is.
macro_rules! driver {
    ($net:expr, $sockets:ident => $call:expr) => {
        match &$net.0.sockets {
            Sockets::Epoll($sockets) => $call,
            Sockets::Uring($sockets) => $call,
        }
    };
}

/// Which driver serves a loop. What holds on one holds on the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Epoll,
    IoUring,
}

/// The event loop of the thread that makes it.
pub struct Loop(Net);

impl Loop {
    /// With `pin_to` the thread is bound to that core first.
    ///
    /// # Errors
    /// When the kernel gives no epoll instance, no ring or no eventfd.
    pub fn new(driver: Driver, pin_to: Option<usize>) -> io::Result<Self> {
        pin_to.inspect(|core| cores::pin_to(*core));
        let doorbell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let sockets = match driver {
            Driver::Epoll => Sockets::Epoll(Box::new(Epoll::new(&doorbell)?)),
            Driver::IoUring => Sockets::Uring(Box::new(Uring::new(&doorbell)?)),
        };
        Ok(Loop(Net(Rc::new(Inner {
            executor: Executor::new(doorbell),
            timers: RefCell::default(),
            now: Cell::new(Instant::now()),
            sockets,
        }))))
    }

    /// Turns until the future that `root` makes has ended; every other task is then dropped, and
    /// its sockets are reset.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(self, root: impl FnOnce(Net) -> F) -> T {
        let Loop(net) = self;
        let answer = Rc::new(Cell::new(None));
        let root = root(net.clone());
        net.spawn({
            let answer = Rc::clone(&answer);
            async move { answer.set(Some(root.await)) }
        });
        let answer = net.0.turn_until(|| answer.take());
        net.0.executor.clear();
        driver!(net, sockets => sockets.settle());
        answer
    }
}

/// The handle to this thread's loop.
#[derive(Clone)]
pub struct Net(Rc<Inner>);

struct Inner {
    executor: Executor,
    timers: RefCell<Timers>,
    now: Cell<Instant>,
    sockets: Sockets,
}

enum Sockets {
    Epoll(Box<Epoll>),
    Uring(Box<Uring>),
}

impl Net {
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    /// When this turn of the loop began.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Unpin {
        Sleep { net: self, at: self.now() + duration, entry: None }
    }

    /// The future's answer, or `None` when `limit` has passed first.
    pub async fn within<T>(&self, limit: Duration, future: impl Future<Output = T> + Unpin) -> Option<T> {
        match either(future, self.sleep(limit)).await {
            Either::Left(answer) => Some(answer),
            Either::Right(()) => None,
        }
    }

    /// Takes over a listening socket.
    ///
    /// # Errors
    /// When the kernel has no room to watch one more socket.
    pub fn listen(&self, socket: OwnedFd) -> io::Result<Listener> {
        Ok(Listener::new(self.watch(socket)?))
    }

    /// Takes over a connected socket.
    ///
    /// # Errors
    /// When the kernel has no room to watch one more socket, which is reset then.
    pub fn adopt(&self, socket: OwnedFd) -> io::Result<Sock> {
        self.watch(socket)
    }

    /// Connects to `to`. The caller sets the deadline.
    ///
    /// # Errors
    /// As socket(2) and connect(2) give them.
    pub async fn dial(&self, to: SocketAddr) -> io::Result<Sock> {
        let sock = Sock::new(self.clone(), driver!(self, sockets => sockets.begin_dial(to))?);
        poll_fn(|cx| driver!(self, sockets => sockets.poll_connected(sock.slot(), cx))).await?;
        if may_meet_itself(to) && sock.local_address()? == to {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(sock)
    }

    /// Moves bytes in both directions until both have ended, then closes both sockets: cleanly,
    /// or with a reset where something is missing. Dropping the future resets both.
    pub fn relay(&self, client: Sock, server: Sock, patience: Patience, tally: Rc<Tally>) -> Relaying {
        self.relay_braked([client, server], patience, tally, None)
    }

    /// The same, no faster than the brake lets it, where there is one.
    pub fn relay_braked(
        &self,
        sockets: [Sock; 2],
        patience: Patience,
        tally: Rc<Tally>,
        brake: Option<Box<dyn Brake>>,
    ) -> Relaying {
        let (slots, now) = (sockets.map(Sock::into_slot), self.now());
        let relay = driver!(self, sockets => sockets.begin_relay(slots, patience, tally, brake, now));
        Relaying { net: self.clone(), relay }
    }

    /// What is lent out just now, by the loop and by its driver.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> InUse {
        let (tasks, timers) = (self.0.executor.len(), self.0.timers.borrow().len());
        InUse { tasks, timers, ..driver!(self, sockets => sockets.in_use()) }
    }

    pub(super) fn watch(&self, fd: OwnedFd) -> io::Result<Sock> {
        Ok(Sock::new(self.clone(), driver!(self, sockets => sockets.watch(fd))?))
    }

    pub(super) fn unwatch(&self, slot: usize) -> OwnedFd {
        driver!(self, sockets => sockets.unwatch(slot))
    }

    pub(super) fn with<T>(&self, slot: usize, act: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        driver!(self, sockets => sockets.with(slot, act))
    }

    pub(super) fn poll_broken(&self, slot: usize, cx: &Context<'_>) -> Poll<()> {
        driver!(self, sockets => sockets.poll_broken(slot, cx))
    }

    pub(super) fn poll_readable(&self, slot: usize, cx: &Context<'_>) -> Poll<()> {
        driver!(self, sockets => sockets.poll_readable(slot, cx))
    }

    pub(super) fn peek(&self, slot: usize) -> io::Result<usize> {
        driver!(self, sockets => sockets.peek(slot))
    }

    pub(super) fn poll_acceptable(&self, slot: usize, cx: &Context<'_>) -> Poll<()> {
        driver!(self, sockets => sockets.poll_acceptable(slot, cx))
    }

    pub(super) fn accept(&self, slot: usize) -> io::Result<(OwnedFd, SocketAddr)> {
        driver!(self, sockets => sockets.accept(slot))
    }
}

/// What a loop has lent out at one moment: for the tests that hold it to getting all of it back.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InUse {
    pub(super) tasks: usize,
    pub(super) timers: usize,
    /// Slots of the driver.
    pub(super) sockets: usize,
    pub(super) relays: usize,
    /// In flight in the ring; those of epoll are none.
    pub(super) operations: usize,
    /// Receive buffers of the ring that the kernel does not have.
    pub(super) buffers_out: usize,
    pub(super) pipes_out: usize,
    /// Directions that are held back.
    pub(super) held: usize,
}

/// TCP lets a socket connect to itself when it is given the very port that it dials: where nobody
/// listens at a loopback port from the range of outgoing connections. It would be an echo.
fn may_meet_itself(to: SocketAddr) -> bool {
    /// Where Linux's default `net.ipv4.ip_local_port_range` begins.
    const OUTGOING_FROM: u16 = 32_768;
    to.ip().is_loopback() && to.port() >= OUTGOING_FROM
}

impl Inner {
    fn turn_until<T>(self: &Rc<Self>, is_done: impl Fn() -> Option<T>) -> T {
        let net = Net(Rc::clone(self));
        loop {
            self.executor.turn();
            driver!(net, sockets => sockets.turn(self.now.get()));
            self.executor.turn(); // those whose relay has just ended: saves them a round through the kernel
            if let Some(answer) = is_done() {
                return answer;
            }
            let patience = self.patience(&net);
            if driver!(net, sockets => sockets.wait(patience)) {
                self.executor.answer_door();
            }
            // Silence is judged by the time before the wait: whatever had come by then has been told
            // now. The wait itself may have been cut short, or may have lasted while the whole
            // process stood still.
            let looked = self.now.replace(Instant::now());
            self.timers.borrow_mut().fire(self.now.get());
            driver!(net, sockets => sockets.sweep(looked));
        }
    }

    /// How long the kernel may keep us: not at all while there is work.
    fn patience(&self, net: &Net) -> Option<Duration> {
        if self.executor.has_ready() || driver!(net, sockets => sockets.has_ready()) {
            return Some(Duration::ZERO);
        }
        let relays = driver!(net, sockets => sockets.deadline());
        let due = [self.timers.borrow().deadline(), relays].into_iter().flatten().min()?;
        Some(due.saturating_duration_since(self.now.get()))
    }
}

/// A relay under way; see [`Net::relay`].
pub struct Relaying {
    net: Net,
    relay: usize,
}

#[cfg(test)]
impl Relaying {
    /// Tells whether it has begun to end, and the kernel has yet to let go of it.
    pub(super) fn watch_for_its_end(&self) -> impl Fn() -> bool + use<> {
        let (net, relay) = (self.net.clone(), self.relay);
        move || driver!(net, sockets => sockets.is_ending(relay))
    }
}

impl Future for Relaying {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        driver!(self.net, sockets => sockets.poll_ended(self.relay, cx))
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        driver!(self.net, sockets => sockets.end_relay(self.relay));
    }
}

/// A point in time to wait for. Its entry among the timers is taken back when it is dropped.
struct Sleep<'a> {
    net: &'a Net,
    at: Instant,
    entry: Option<(Instant, u64)>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.net.now() >= self.at {
            return Poll::Ready(());
        }
        let mut timers = self.net.0.timers.borrow_mut();
        if let Some(entry) = self.entry.take() {
            timers.remove(entry);
        }
        self.entry = Some(timers.add(self.at, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.net.0.timers.borrow_mut().remove(entry);
        }
    }
}
