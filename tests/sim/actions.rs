//! What happens: one action at each step, drawn by weight, and then whatever has become due.

use std::net::IpAddr;
use std::time::Duration;

use tidegate::core::prefix::Prefix;
use tidegate::core::priority::{Among, Priority};
use tidegate::core::spread;
use tidegate::live::Taker;

use super::model::door;
use super::plan;
use super::search::Stage;
use super::waiting::class_of;
use super::world::{Client, Truth, WORKERS, World};

/// Rounds in which things that were due bring about others that are due at once. Each client has a
/// bounded number of attempts, and then pauses; so this is never reached.
const ROUNDS_MAX: usize = 1000;

/// How long a drain lasts: some clients take longer.
const DRAIN: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Action {
    Arrive,
    /// Many come at the same moment.
    Rush,
    /// They do, and nobody answers.
    Storm,
    Leave,
    GiveUp,
    Tick,
    Leap,
    Check,
    Fault,
    /// A server goes down and rises within a pause.
    Flap,
    Reload,
}

const ACTIONS: &[(u64, Action)] = &[
    (300, Action::Arrive),
    (3, Action::Rush),
    (3, Action::Storm),
    (220, Action::Leave),
    (15, Action::GiveUp),
    (300, Action::Tick),
    (4, Action::Leap),
    (80, Action::Check),
    (12, Action::Fault),
    (8, Action::Flap),
    (5, Action::Reload),
];

const TRUTHS: &[(u64, Truth)] =
    &[(5, Truth::Answers), (2, Truth::Slow), (3, Truth::Refuses), (1, Truth::Silent), (2, Truth::Rotten)];

impl World {
    pub fn step(&mut self) {
        self.trace.step += 1;
        match self.dice.weighted(ACTIONS) {
            Action::Arrive => self.arrive(),
            Action::Rush => (0..self.dice.between(10, 80)).for_each(|_| self.arrive()),
            Action::Storm => {
                self.servers.values_mut().for_each(|server| server.truth = Truth::Silent);
                self.trace.add("all", format_args!("{:?}", Truth::Silent));
                (0..self.dice.between(150, 400)).for_each(|_| self.arrive());
            }
            Action::Leave => self.one_leaves(),
            Action::GiveUp => {
                if let Some(client) = self.any_client() {
                    self.leave(client, "gives-up");
                }
            }
            Action::Tick => self.now += self.dice.ms(0, 40),
            Action::Leap => {
                let leap = self.dice.weighted(&[(6, 3_000), (3, 30_000), (1, 7_200_000)]);
                self.now += self.dice.ms(1, leap);
                self.trace.add("leap", format_args!("to {} ms", self.ms()));
            }
            Action::Check => {
                let place = self.dice.below(self.pool.places.len());
                self.check_server(place);
            }
            Action::Fault => self.fault(),
            Action::Flap => self.flap(),
            Action::Reload => {
                let mut plan = self.pool.plan.clone();
                let what = plan.reload(&mut self.dice);
                self.apply(plan);
                self.trace.add("reload", format_args!("{what}: {:?}", self.pool.plan.kind));
            }
        }
        self.settle();
        self.check();
    }

    fn arrive(&mut self) {
        let from = plan::source(&mut self.dice);
        self.numbers += 1;
        let id = self.numbers;
        match self.admit(id, from) {
            Ok(client) => {
                self.trace.add("arrives", format_args!("#{id} {from} at {} ms", self.ms()));
                self.enter_pool(client);
            }
            Err(why) => self.trace.add(why, format_args!("#{id} {from}")),
        }
    }

    /// The questions of `data/admit.rs`, in their order.
    fn admit(&mut self, id: u64, from: IpAddr) -> Result<Client, &'static str> {
        let (door, now) = (self.pool.plan.door.clone(), self.now);
        let plain = from.to_canonical();
        let is_let_in = self.acl.check(plain).is_ok();
        assert_eq!(is_let_in, door::admits(&door.allow, &door.deny, plain), "may {plain} come in");
        if !is_let_in {
            return Err("acl-deny");
        }
        let source = match plain {
            IpAddr::V4(_) => Prefix::of(plain),
            IpAddr::V6(_) => Prefix::around(plain, 64).expect("an address of IPv6"),
        };
        if let Some(rate) = door.rate_per_source {
            let taken = self.gate.pass_from(source, rate, now);
            self.models.jars.on_take(source, taken.is_ok(), now);
            taken.map_err(|_| "source-rate")?;
        }
        let place = match door.most_per_source {
            None => None,
            Some(most) => {
                let open = self.clients.values().filter(|client| client.source == Some(source)).count();
                let place = self.gate.take(source, most);
                assert_eq!(place.is_some(), open < most, "{open} of {most} from {source}");
                Some(place.ok_or("source-limit")?)
            }
        };
        let class = class_of(from);
        let room = self.listener.take_within(Among::new(Priority::ALL.iter().copied()).reach(class));
        assert_eq!(room.is_some(), self.clients.len() < door::part(class, door.most), "room for {class}");
        let room = room.ok_or("listener-limit")?;
        if let Some(rate) = door.rate {
            let taken = self.gate.pass(rate, now);
            self.models.jar.on_take((), taken.is_ok(), now);
            taken.map_err(|_| "rate")?;
        }
        let own = self.dice.below(WORKERS);
        let source = place.is_some().then_some(source);
        let seat = self.loads.seat(self.seat_of(own));
        Ok(Client {
            id,
            from,
            seat,
            source,
            _room: room,
            _place: place,
            search: None,
            waits: None,
            stage: Stage::InLine,
        })
    }

    /// The worker that serves whom `own` has taken.
    fn seat_of(&self, own: usize) -> usize {
        let open: Vec<_> = self.loads.iter().collect();
        let lighter = spread::lighter(own, open.iter().copied());
        let fewest = *open.iter().min().expect("some workers");
        let is_much = open[own] > fewest + 1 + fewest / 32;
        assert_eq!(lighter.is_some(), is_much, "{open:?} at {own}");
        assert!(lighter.is_none_or(|lighter| open[lighter] == fewest));
        lighter.unwrap_or(own)
    }

    /// A client that was served has had enough, and its server has shown what it is good for.
    fn one_leaves(&mut self) {
        let Some(client) = self.any_client() else { return };
        if let Stage::Served { server, is_watched: true, .. } = client.stage {
            let is_good = self.server(server).truth != Truth::Rotten && !self.dice.once_in(30);
            let now = self.now;
            self.judged(server, is_good, |server| server.live.guard.on_service(is_good, now));
        } else if !matches!(client.stage, Stage::Served { .. }) {
            self.clients.insert(client.id, client);
            return;
        }
        self.leave(client, "leaves");
    }

    fn any_client(&mut self) -> Option<Client> {
        if self.clients.is_empty() {
            return None;
        }
        let which = self.dice.below(self.clients.len());
        let id = *self.clients.keys().nth(which)?;
        self.clients.remove(&id)
    }

    /// The client is gone, wherever it was, and gives back all that it held.
    pub fn leave(&mut self, client: Client, why: &'static str) {
        let now = self.now;
        match &client.stage {
            Stage::Served { server, .. } => self.server_mut(*server).has -= 1,
            Stage::Dialling(dial) => {
                let server = self.server_mut(dial.server);
                server.has -= 1;
                server.circuit.end(dial.mark.circuit, None, now);
            }
            Stage::Pausing { .. } | Stage::InLine => {}
        }
        let retries = client.search.iter().flat_map(|search| &search.met.retries);
        retries.for_each(|is_bad| self.models.retries.on_end(*is_bad, None, now));
        if client.waits.is_some() {
            self.models.line.leave(client.id);
        }
        self.trace.add(why, format_args!("#{}", client.id));
    }

    fn fault(&mut self) {
        let truth = self.dice.weighted(TRUTHS);
        if self.dice.once_in(5) {
            // All at once, or back at once.
            self.servers.values_mut().for_each(|server| server.truth = truth);
            self.trace.add("all", format_args!("{truth:?}"));
            return;
        }
        let place = self.dice.below(self.pool.places.len());
        let id = self.pool.places[place].id;
        self.server_mut(id).truth = truth;
        self.trace.add("truth", format_args!("s{id} {truth:?}"));
    }

    /// Also the clients in a pause see each change, as it comes.
    fn flap(&mut self) {
        let place = self.dice.below(self.pool.places.len());
        let (id, times) =
            (self.pool.places[place].id, self.pool.plan.checks.map_or(0, |(up, down)| up + down));
        for truth in [Truth::Refuses, Truth::Answers] {
            self.server_mut(id).truth = truth;
            self.trace.add("truth", format_args!("s{id} {truth:?}"));
            for _ in 0..times {
                self.check_server(place);
                self.settle();
            }
        }
    }

    /// Whatever is due happens, until nothing more is.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let due: Vec<u64> = self.clients.values().filter(|it| self.is_due(it)).map(|it| it.id).collect();
            if due.is_empty() {
                return;
            }
            for id in due {
                // What happened to those before may have changed what is due.
                if self.clients.get(&id).is_some_and(|client| self.is_due(client))
                    && let Some(client) = self.clients.remove(&id)
                {
                    self.due(client);
                }
            }
        }
        panic!("it does not come to rest");
    }

    fn is_due(&self, client: &Client) -> bool {
        let now = self.now;
        client.waits.as_ref().is_some_and(|waits| waits.deadline <= now)
            || self.displaced(client).is_some()
            || match &client.stage {
                Stage::Dialling(dial) => dial.ends <= now || self.is_to_be_kept(client),
                Stage::Pausing { until } => {
                    *until <= now || client.search.as_ref().is_some_and(|search| search.news != self.news)
                }
                Stage::InLine => self.is_to_ask(client),
                Stage::Served { .. } => false,
            }
    }

    fn due(&mut self, mut client: Client) {
        let now = self.now;
        if client.waits.as_ref().is_some_and(|waits| waits.deadline <= now) {
            return self.leave(client, "queue-timeout");
        }
        match self.displaced(&client) {
            Some(Taker::HigherClass) => return self.leave(client, "displaced"),
            Some(Taker::OtherSource) => return self.leave(client, "outnumbered"),
            None => {}
        }
        match std::mem::replace(&mut client.stage, Stage::InLine) {
            Stage::Dialling(dial) if dial.ends <= now => self.end_dial(client, dial),
            dialling @ Stage::Dialling(_) => {
                client.stage = dialling;
                self.keep(&mut client);
                self.clients.insert(client.id, client);
            }
            Stage::Pausing { .. } => self.again(client),
            Stage::InLine => self.ask_again(client),
            served @ Stage::Served { .. } => {
                client.stage = served;
                self.clients.insert(client.id, client);
            }
        }
    }

    /// What must hold after each step.
    pub fn check(&mut self) {
        let (now, over) = (self.now, self.pool.plan.slow_start);
        self.servers.values_mut().for_each(|server| server.check(over, now));
        assert_eq!(self.listener.taken(), self.clients.len(), "clients of the listener");
        assert_eq!(self.live.line.length(), self.models.line.len(), "clients in the line");
        let mut seats = [0; WORKERS];
        self.clients.values().for_each(|client| seats[client.seat.worker()] += 1);
        assert!(self.loads.iter().eq(seats), "clients of the workers");
        let ttl = self.pool.plan.affinity.map_or(Duration::MAX, |affinity| affinity.ttl);
        let known = self.live.affinity.count(ttl, now).0;
        assert_eq!(known, self.models.ties.count(now, ttl), "clients that are known");
        assert!(known <= self.pool.plan.affinity.map_or(0, |affinity| affinity.most), "{known} are too many");
    }

    /// Nobody comes any more; whoever is left at the deadline is cut. Then everything is as if nobody
    /// had ever come.
    pub fn drain(&mut self) {
        let deadline = self.now + DRAIN;
        while self.now < deadline && !self.clients.is_empty() {
            self.trace.step += 1;
            self.now = (self.now + self.dice.ms(1, 400)).min(deadline);
            self.settle();
            self.one_leaves();
            self.check();
        }
        while let Some((_, client)) = self.clients.pop_first() {
            self.leave(client, "cut");
        }
        self.check();
        assert_eq!(
            (self.listener.taken(), self.live.line.length(), self.models.retries.under_way),
            (0, 0, 0)
        );
        assert!(self.servers.values().all(|server| server.live.room.taken() == 0));
        for host in 0..=255 {
            assert_eq!(self.gate.open(Prefix::of(IpAddr::from([192, 0, 2, host]))), 0, "of 192.0.2.{host}");
        }
    }
}
