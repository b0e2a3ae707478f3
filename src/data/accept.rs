//! Takes clients, one after the other, while there is room for them.
//!
//! Where a listener lets clients wait, room is found first and the client is taken then: until
//! that moment it stands in the kernel's queue, which costs us nothing and loses nobody. Room is sought for
//! the highest class that may come to the listener, so that no lower one stands in its way; a client of a
//! lower one has to find places of its own afterwards, and is refused where there are none.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::admit::{Verdict, judge};
use super::close::{close, unwatched};
use super::handover::Taken;
use super::listen::liveness;
use super::serve::serve;
use super::signal::Signal;
use super::visit::{Arrival, Visit};
use super::worker::Worker;
use crate::config::plan::WhenFull;
use crate::core::priority::{Priority, Reach};
use crate::live::{Permit, Room, gate};
use crate::net::{self, Sock, either};
use crate::snapshot::{Listener, Reaches};

/// After a failed accept(2), the first pause and the longest. Descriptors and memory come back
/// when others give them back, which no event tells: asking on would only burn the core.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long clients who have nearly arrived get to do so before a listener is closed. While the kernel
/// says that handshakes are under way, the same again, each time twice as long: the question is not cheap.
const LAST_ARRIVALS: Duration = Duration::from_millis(20);

/// How long a listener that is being closed stays for those who stand before it: for handshakes of clients
/// far away, and for room where it is full. Short visits come and go thousands of times in that; who waits for
/// long ones, and who comes anew meanwhile, is better told to go elsewhere.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// Failed accepts that are borne while the last clients are taken: half a second's worth.
const LAST_FAILURES_MAX: u32 = 50;

/// A client that has been taken from the kernel.
pub(super) struct Client {
    pub(super) sock: Sock,
    pub(super) verdict: Verdict,
}

/// A connection's places under the limits of its listener, of the process and of its source.
pub(super) struct Places {
    /// Among the connections of its source, where those are limited.
    _source: Option<Box<gate::Place>>,
    _listener: Permit,
    _process: Permit,
}

/// Which limit is reached, as far as a client reaches.
pub(super) struct Full {
    whose: &'static str,
    limit: usize,
    /// What of it the client's class may fill.
    part: usize,
}

impl Full {
    fn of(whose: &'static str, room: &Room, reach: Reach) -> Self {
        let limit = room.limit();
        Full { whose, limit, part: reach.of(limit) }
    }

    /// Another class might still find a place.
    pub(super) fn is_for_some(&self) -> bool {
        self.part < self.limit
    }

    /// For the one who is told to go.
    pub(super) fn told(&self, class: Priority) -> String {
        let Full { whose, limit, part } = self;
        if self.is_for_some() {
            return format!(
                "the {whose} lets clients of priority {class} fill {part} of its max_connections ({limit}), \
                 and so many are taken"
            );
        }
        format!("the {whose} is at its max_connections ({limit})")
    }
}

impl Places {
    pub(super) fn take(reaches: Reaches, listener: &Listener, worker: &Worker) -> Result<Self, Full> {
        let (room, process) = (&listener.live.room, &worker.process_room);
        let full = |whose, room, reach| move || Full::of(whose, room, reach);
        let own = room.take_within(reaches.listener);
        let own = own.ok_or_else(full("listener", room, reaches.listener))?;
        let all = process.take_within(reaches.process);
        let all = all.ok_or_else(full("process", process, reaches.process))?;
        Ok(Places { _source: None, _listener: own, _process: all })
    }

    pub(super) fn with(self, source: Option<Box<gate::Place>>) -> Self {
        Places { _source: source, ..self }
    }
}

/// One listening socket of one worker.
pub(super) struct Door {
    worker: Rc<Worker>,
    socket: net::Listener,
    name: String,
    at: SocketAddr,
}

impl Door {
    pub(super) fn new(worker: Rc<Worker>, socket: net::Listener, name: String) -> Self {
        let at = socket.local_address().expect("a bound socket has an address");
        Door { worker, socket, name, at }
    }

    /// Takes clients until it is told to close, and then those who are queued.
    pub(super) async fn keep(self, closing: Rc<Signal<()>>) {
        either(pin!(closing.raised()), pin!(self.take_clients())).await;
        self.take_last_clients().await;
    }

    async fn take_clients(&self) {
        let mut pause = PAUSES.0;
        let mut tcp = None;
        loop {
            self.socket.ready().await;
            let Some(world) = self.worker.listener(&self.name) else { return };
            if tcp != Some(world.plan.tcp) {
                // Clients that are queued already keep what they inherited; so be it.
                let _ = self.socket.set_liveness(liveness(world.plan.tcp));
                tcp = Some(world.plan.tcp);
            }
            match self.take_one(world).await {
                Ok(()) => pause = PAUSES.0,
                Err(_) => {
                    self.worker.net.sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Closes the door without losing whoever stands before it already.
    async fn take_last_clients(&self) {
        let is_filtered = self.socket.drop_new_attempts().is_ok();
        let until = self.worker.net.now() + LAST_MOMENTS;
        self.take_queued(until).await;
        if is_filtered {
            self.take_arrivals(until).await;
        }
    }

    /// Takes those whose handshake is under way, once they have arrived, and waits for them until then.
    async fn take_arrivals(&self, until: Instant) {
        let mut pause = LAST_ARRIVALS;
        loop {
            // Asked before the pause: whoever has arrived when nobody is on the way is in the queue after it.
            let are_more_to_come = self.socket.has_handshakes_under_way();
            self.worker.net.sleep(if are_more_to_come { pause } else { LAST_ARRIVALS }).await;
            self.take_queued(until).await;
            if !are_more_to_come || self.worker.is_cutting() || self.worker.net.now() >= until {
                return;
            }
            pause = (pause * 2).min(until.saturating_duration_since(self.worker.net.now()));
        }
    }

    /// Takes all who stand in the queue, and only then looks for room: a full listener before which nobody
    /// stands is closed at once. They wait for it until then, and without it they are refused.
    async fn take_queued(&self, room_until: Instant) {
        let mut failures = 0;
        while let Some(world) = self.worker.listener(&self.name) {
            self.socket.give_way().await;
            let taken = match self.accept(&world) {
                Ok(Some(client)) => {
                    let (places, world) = self.find_places(world, Some(room_until)).await;
                    self.let_in(client, places, world)
                }
                Ok(None) => return,
                Err(error) => Err(error),
            };
            if taken.is_err() {
                if failures == LAST_FAILURES_MAX {
                    return;
                }
                failures += 1;
                self.worker.net.sleep(PAUSES.0).await;
            }
        }
    }

    /// Takes one client and has it served, if one waits.
    async fn take_one(&self, world: Arc<Listener>) -> io::Result<()> {
        let (places, world) = self.find_places(world, None).await;
        match self.accept(&world)? {
            Some(client) => self.let_in(client, places, world),
            None => Ok(()),
        }
    }

    fn accept(&self, world: &Listener) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
        let stats = world.live.stats.of(self.worker.index);
        let accepted = self.socket.accept();
        match &accepted {
            Ok(Some(_)) => stats.accepted.add(1),
            Ok(None) => {}
            Err(_) => stats.accept_failures.add(1),
        }
        accepted
    }

    fn let_in(
        &self,
        (socket, peer): (OwnedFd, SocketAddr),
        places: Option<Places>,
        world: Arc<Listener>,
    ) -> io::Result<()> {
        let class = world.plan.classes.of(peer.ip());
        let verdict = judge(peer, class, places, &world, &self.worker);
        self.worker.place(self.taken(socket, (peer, class), verdict, world))
    }

    /// Places for the next client where clients wait for those, and the listener as it is once they are found.
    /// They wait until then, or for as long as it takes.
    async fn find_places(
        &self,
        world: Arc<Listener>,
        until: Option<Instant>,
    ) -> (Option<Places>, Arc<Listener>) {
        if world.plan.when_full == WhenFull::Refuse {
            return (None, world);
        }
        if let Ok(places) = Places::take(world.reaches_of_anybody(), &world, &self.worker) {
            return (Some(places), world);
        }
        let places = self.wait_for_places(&world, until).await;
        (places, self.worker.listener(&self.name).unwrap_or(world)) // there may have been a reload
    }

    /// Places as soon as there are some; `None` once nobody is to wait for them any more.
    async fn wait_for_places(&self, world: &Listener, until: Option<Instant>) -> Option<Places> {
        let found = pin!(self.places_once_free(&world.live.room));
        let Some(until) = until else { return found.await };
        let time_left = until.saturating_duration_since(self.worker.net.now());
        if time_left.is_zero() {
            return None; // no timer for each of thousands who are refused
        }
        self.worker.net.within(time_left, found).await.flatten()
    }

    /// Places, as soon as the listener and the process both have one for the listener's clients: till then, none of
    /// either is held. A reload may change how far they reach, and that they wait at all: then `None`.
    async fn places_once_free(&self, own: &Arc<Room>) -> Option<Places> {
        loop {
            let news = self.worker.news.rings();
            let world = self.worker.listener(&self.name);
            if world.as_ref().is_some_and(|world| world.plan.when_full == WhenFull::Refuse) {
                return None;
            }
            let reaches = world.map_or(Reaches::WHOLE, |world| world.reaches_of_anybody());
            let rooms = [(own, reaches.listener), (&self.worker.process_room, reaches.process)];
            let found = poll_fn(|cx| match Room::poll_take_both(rooms, cx) {
                Poll::Ready(permits) => Poll::Ready(Some(permits)),
                Poll::Pending => self.worker.news.poll_after(news, cx).map(|()| None),
            });
            if let Some([own, all]) = found.await {
                return Some(Places { _source: None, _listener: own, _process: all });
            }
        }
    }

    fn taken(
        &self,
        socket: OwnedFd,
        (peer, class): (SocketAddr, Priority),
        verdict: Verdict,
        world: Arc<Listener>,
    ) -> Taken {
        let worker = &self.worker;
        // Who is refused is not worth another worker's turn.
        let seat = match &verdict {
            Ok(_) => worker.crew.seat(worker.index),
            Err(_) => worker.crew.seat_here(worker.index),
        };
        Taken {
            socket,
            peer,
            class,
            at: self.at,
            accepted: worker.net.now(),
            world,
            generation: worker.generation(),
            verdict,
            seat,
        }
    }
}

impl Worker {
    /// Has a client served by the worker that it has a seat at.
    ///
    /// # Errors
    /// When the kernel has no room to watch one more socket; the client is reset then, and told of.
    fn place(self: &Rc<Self>, client: Taken) -> io::Result<()> {
        if client.seat.worker() == self.index {
            return self.welcome(client);
        }
        self.crew.hand(client, self.index).map_or(Ok(()), |client| self.welcome(client))
    }

    /// Serves a client here.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub(super) fn welcome(self: &Rc<Self>, client: Taken) -> io::Result<()> {
        let Taken { socket, peer, class, at, accepted, world, generation, verdict, seat } = client;
        let sock = self.net.adopt(socket);
        let local = match &sock {
            Ok(sock) if at.ip().is_unspecified() => sock.local_address().unwrap_or(at),
            _ => at,
        };
        let conn_id = self.next_conn_id();
        let arrival = Arrival { conn_id, accepted, generation, client: peer, class, local, seat };
        let visit = Visit::begin(arrival, Arc::clone(&world.live), Arc::clone(&world.flow));
        self.enter(&visit);
        match sock {
            Ok(sock) => {
                self.net.spawn(serve(Client { sock, verdict }, visit, world, Rc::clone(self)));
                Ok(())
            }
            Err(error) => {
                let end = verdict.err().map_or_else(|| unwatched(&error), |refused| *refused);
                close(&visit, end, self);
                Err(error)
            }
        }
    }
}
