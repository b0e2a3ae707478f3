//! One per core: its listeners, its view of the world, its open connections, its orders.
//!
//! Share-nothing: what a worker touches for each connection is its own, save the atomic counts
//! of listeners and servers. It never waits for control and never for another worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use slab::Slab;

use super::accept::Door;
use super::handover::{Crew, Taken};
use super::listen::Bound;
use super::lost::Drain;
use super::signal::{Bell, Signal};
use super::visit::{Cut, Visit};
use crate::config::plan::Io;
use crate::live::Room;
use crate::net::{Driver, Loop, Net, either};
use crate::orders::{self, Drained, Inbox, Order};
use crate::snapshot::{Listener, Pool, Snapshot};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::telemetry::access_log::Ring;

/// How often bytes of open connections are brought to the counters.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// What a worker begins with.
#[derive(Debug)]
pub struct Start {
    /// From 0; its cell among the counters.
    pub index: usize,
    pub snapshot: Arc<Snapshot>,
    pub bound: Bound,
    pub access_log: Arc<Ring>,
}

/// A worker that has its thread and its event loop, and waits for its work. It ends if that can
/// never come.
pub struct Hired {
    worker: orders::Worker,
    begin: SyncSender<(Start, Arc<Crew>)>,
}

/// Workers on threads of their own, each with its event loop, bound to a core where `pin_to`
/// names one.
///
/// # Errors
/// When the system gives a thread or an event loop to one of them. The others have ended by then.
pub fn hire(count: usize, io: Io, pin_to: impl Fn(usize) -> Option<usize>) -> io::Result<Vec<Hired>> {
    let mut hired = Vec::with_capacity(count);
    for index in 0..count {
        match hire_one(index, io, pin_to(index)) {
            Ok(one) => hired.push(one),
            Err(error) => {
                hired.into_iter().for_each(Hired::dismiss);
                return Err(error);
            }
        }
    }
    Ok(hired)
}

/// Lets the workers begin. A worker ends after [`Order::Drain`] or [`Order::Stop`].
///
/// No client is taken before every worker has its event loop: those of an early worker could use
/// up the descriptors that a late one needs to begin, and whoever stands in the queues of a worker
/// that never began would wait for ever.
pub fn start(hired: Vec<Hired>, starts: Vec<Start>) -> Vec<orders::Worker> {
    let Some(first) = starts.first() else { return Vec::new() };
    let crew = Crew::new(Arc::clone(&first.snapshot.loads), starts.len());
    let begin = |(Hired { worker, begin }, start)| {
        let _ = begin.send((start, Arc::clone(&crew))); // a thread that is gone shows when it is joined
        worker
    };
    hired.into_iter().zip(starts).map(begin).collect()
}

fn hire_one(index: usize, io: Io, pin_to: Option<usize>) -> io::Result<Hired> {
    let (post, inbox) = orders::mailbox();
    let pulse = Arc::new(AtomicU64::new(0));
    let (begin, begun) = sync_channel(1);
    let (tell, told) = sync_channel(1);
    let thread = thread::Builder::new().name(format!("worker-{index}")).spawn({
        let pulse = Arc::clone(&pulse);
        move || {
            let made = Loop::new(driver_of(io), pin_to);
            let (made, answer) = match made {
                Ok(made) => (Some(made), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _ = tell.send(answer);
            match (made, begun.recv()) {
                (Some(made), Ok((start, crew))) => made.run(move |net| work(net, start, crew, inbox, pulse)),
                _ => Drained::default(),
            }
        }
    })?;
    told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))?;
    Ok(Hired { worker: orders::Worker { post, pulse, thread }, begin })
}

impl Hired {
    /// There is no work. What its event loop held is free afterwards.
    fn dismiss(self) {
        drop(self.begin);
        let _ = self.worker.thread.join(); // it has nothing to tell
    }
}

fn driver_of(io: Io) -> Driver {
    match io {
        Io::Epoll => Driver::Epoll,
        Io::IoUring => Driver::IoUring,
    }
}

async fn work(net: Net, start: Start, crew: Arc<Crew>, inbox: Inbox, pulse: Arc<AtomicU64>) -> Drained {
    let worker = Rc::new(Worker {
        index: start.index,
        net: net.clone(),
        process_room: Arc::clone(&start.snapshot.process_room),
        crew,
        access_log: start.access_log,
        snapshot: RefCell::new(start.snapshot),
        news: Bell::default(),
        draining: RefCell::default(),
        visits: RefCell::default(),
        next_conn: Cell::new(0),
        doors: RefCell::default(),
        drained: Cell::new(None),
        cutting: Cell::new(None),
        is_empty: Signal::new(),
        is_over: Signal::new(),
    });
    start.bound.0.into_iter().for_each(|(name, socket)| worker.open_door(name, socket));
    net.spawn(count_bytes(Rc::clone(&worker)));
    net.spawn(take_handed(Rc::clone(&worker)));
    either(pin!(worker.is_over.raised()), pin!(worker.obey(inbox, pulse))).await;
    worker.drained.get().unwrap_or_default()
}

/// A worker, as the steps of a connection see it.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) net: Net,
    pub(super) process_room: Arc<Room>,
    pub(super) crew: Arc<Crew>,
    pub(super) access_log: Arc<Ring>,
    snapshot: RefCell<Arc<Snapshot>>,
    /// Rings with each new snapshot.
    pub(super) news: Bell,
    /// Servers that went down and whose connections have some time left, by the address of the server's counts,
    /// which its task holds. See `lost.rs`.
    pub(super) draining: RefCell<HashMap<usize, Drain>>,
    /// The open connections.
    visits: RefCell<Slab<Rc<Visit>>>,
    next_conn: Cell<u64>,
    /// Raised to close a listener; one for each that is open.
    doors: RefCell<Slab<Rc<Signal<()>>>>,
    /// `Some` from the order to end on.
    drained: Cell<Option<Drained>>,
    /// Why connections are being cut, from the moment on that they are.
    cutting: Cell<Option<Cut>>,
    /// No door and no connection is open any more.
    is_empty: Signal<()>,
    is_over: Signal<()>,
}

impl Worker {
    /// The listener of that name as it is now.
    pub(super) fn listener(&self, name: &str) -> Option<Arc<Listener>> {
        self.snapshot.borrow().listeners.get(name).cloned()
    }

    /// The pool of that name as it is now.
    pub(super) fn pool(&self, name: &str) -> Option<Arc<Pool>> {
        self.snapshot.borrow().pools.get(name).cloned()
    }

    pub(super) fn generation(&self) -> u64 {
        self.snapshot.borrow().generation
    }

    /// Unique in this process: the worker in the upper 16 bits, its count in the lower 48.
    pub(super) fn next_conn_id(&self) -> u64 {
        self.next_conn.set(self.next_conn.get() + 1);
        ((self.index as u64) << 48) | self.next_conn.get()
    }

    /// A connection is open from here until [`Self::leave`].
    pub(super) fn enter(&self, visit: &Rc<Visit>) {
        visit.place.set(self.visits.borrow_mut().insert(Rc::clone(visit)));
        if let Some(cut) = self.cutting.get() {
            visit.cut.raise(cut);
        }
    }

    pub(super) fn leave(&self, visit: &Visit) {
        self.visits.borrow_mut().remove(visit.place.get());
        if let Some(mut drained) = self.drained.get() {
            if visit.cut.is_raised_as(|cut| matches!(cut, Cut::DrainDeadline | Cut::Stop)) {
                drained.cut += 1;
            } else {
                drained.finished += 1;
            }
            self.drained.set(Some(drained));
        }
        self.tell_if_empty();
    }

    fn open_door(self: &Rc<Self>, name: String, socket: std::os::fd::OwnedFd) {
        let socket = self.net.listen(socket).expect("epoll has room for a listener at the start");
        let door = Door::new(Rc::clone(self), socket, name);
        let closing = Rc::new(Signal::new());
        let place = self.doors.borrow_mut().insert(Rc::clone(&closing));
        let worker = Rc::clone(self);
        self.net.spawn(async move {
            door.keep(closing).await;
            worker.doors.borrow_mut().remove(place);
            worker.tell_if_empty();
        });
    }

    fn tell_if_empty(&self) {
        if self.drained.get().is_some() && self.visits.borrow().is_empty() && self.doors.borrow().is_empty() {
            self.is_empty.raise(());
        }
    }

    async fn obey(self: &Rc<Self>, inbox: Inbox, pulse: Arc<AtomicU64>) {
        loop {
            match inbox.next().await {
                Order::Publish(snapshot) => {
                    let before = self.snapshot.replace(Arc::clone(&snapshot));
                    self.news.ring();
                    self.let_go_of_lost(&before, &snapshot);
                }
                Order::Beat => _ = pulse.fetch_add(1, Ordering::Relaxed),
                Order::Drain { deadline } => self.end(deadline),
                Order::Stop => {
                    self.end(Instant::now());
                    self.cut_all(Cut::Stop);
                }
            }
        }
    }

    /// Closes the doors, and ends when the last connection has or the deadline has come.
    fn end(self: &Rc<Self>, deadline: Instant) {
        if self.drained.get().is_some() {
            return;
        }
        self.drained.set(Some(Drained::default()));
        self.doors.borrow().iter().for_each(|(_, closing)| closing.raise(()));
        self.welcome_all(self.crew.close(self.index));
        self.tell_if_empty();
        let worker = Rc::clone(self);
        self.net.spawn(async move {
            let time_left = deadline.saturating_duration_since(worker.net.now());
            if worker.net.within(time_left, pin!(worker.is_empty.raised())).await.is_none() {
                worker.cut_all(Cut::DrainDeadline);
                worker.is_empty.raised().await;
            }
            worker.is_over.raise(());
        });
    }

    fn welcome_all(self: &Rc<Self>, clients: Vec<Taken>) {
        for client in clients {
            // Out of room to watch a socket: the client is reset and told of, and others go on.
            let _ = self.welcome(client);
        }
    }

    /// The time of those that are open is over.
    pub(super) fn is_cutting(&self) -> bool {
        self.cutting.get().is_some()
    }

    /// Ends every connection, and each that the doors still let in.
    fn cut_all(&self, cut: Cut) {
        self.cutting.set(Some(cut));
        self.cut_some(cut, |_| true);
    }

    pub(super) fn cut_some(&self, cut: Cut, is_it: impl Fn(&Visit) -> bool) {
        let visits = self.visits.borrow();
        visits.iter().filter(|(_, visit)| is_it(visit)).for_each(|(_, visit)| visit.cut.raise(cut));
    }
}

/// Serves what other workers have taken.
async fn take_handed(worker: Rc<Worker>) {
    loop {
        let clients = worker.crew.handed(worker.index).await;
        worker.welcome_all(clients);
    }
}

/// Keeps the counters of open connections fresh, and what is known of servers.
async fn count_bytes(worker: Rc<Worker>) {
    loop {
        worker.net.sleep(COUNT_EVERY).await;
        let now = worker.net.now();
        worker.visits.borrow().iter().for_each(|(_, visit)| {
            visit.count_bytes(worker.index);
            visit.judge_server(false, now);
        });
    }
}
