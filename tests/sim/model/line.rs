//! Who waits, and whose turn it is.

use tidegate::core::priority::Priority;

/// Clients that ask at the same time, at the most.
const WIDTH_MAX: usize = 64;

/// Of clients by number, from sources by number, in classes.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    /// In the order of coming.
    waiting: Vec<(Lane, u64)>,
    /// Those who wait, by class and source, in the order of their turns.
    turns: Vec<Lane>,
    /// In the order of their turns, the highest class first.
    called: Vec<(Lane, u64)>,
    width: usize,
    /// Of those who are called: at a server that does not answer yet.
    kept: Vec<u64>,
}

type Lane = (Priority, u128);

impl Waiting {
    pub fn len(&self) -> usize {
        self.waiting.len() + self.called.len()
    }

    pub fn holds(&self, client: u64) -> bool {
        self.waiting.iter().any(|(_, one)| *one == client)
            || self.called.iter().any(|(_, one)| *one == client)
    }

    /// May such a client stand in a line of so many: there is room, or somebody who has to stand back.
    pub fn has_room_for(&self, lane: Lane, most: usize) -> bool {
        self.len() < most || self.clone().put_one_out(lane)
    }

    pub fn join(&mut self, lane: Lane, client: u64, most: usize) {
        if self.len() >= most {
            self.put_one_out(lane);
        }
        self.waiting.push((lane, client));
        if !self.turns.contains(&lane) {
            self.turns.push(lane);
        }
        self.call();
    }

    pub fn may_ask(&self, client: u64) -> bool {
        let highest = self.called.first().map(|((class, _), _)| *class);
        let mut first = self.called.iter().take(self.width());
        first.any(|((class, _), called)| *called == client && Some(*class) == highest)
    }

    /// Is one of those before it at a server that does not answer.
    pub fn is_behind(&self, client: u64) -> bool {
        let mut before = self.called.iter().take_while(|(_, called)| *called != client);
        before.any(|(_, called)| self.kept.contains(called))
    }

    pub fn keep(&mut self, client: u64) {
        self.kept.push(client);
        self.call();
    }

    pub fn in_vain(&mut self, client: u64) {
        if !self.is_behind(client) {
            self.width = 1;
        }
        self.kept.retain(|kept| *kept != client);
    }

    pub fn served(&mut self, client: u64) {
        self.width = (self.width.max(1) * 2).min(WIDTH_MAX);
        self.leave(client);
    }

    pub fn leave(&mut self, client: u64) {
        self.called.retain(|(_, called)| *called != client);
        self.kept.retain(|kept| *kept != client);
        self.waiting.retain(|(_, waits)| *waits != client);
        self.turns.retain(|turn| self.waiting.iter().any(|(lane, _)| lane == turn));
        self.call();
    }

    /// How many may ask at the same time, beside those who are kept.
    fn width(&self) -> usize {
        let kept = self.called.iter().filter(|(_, called)| self.kept.contains(called)).count();
        (self.width.max(1) + kept).min(WIDTH_MAX)
    }

    fn lowest(&self) -> Option<Priority> {
        self.waiting.iter().chain(&self.called).map(|((class, _), _)| *class).max()
    }

    /// For one who comes; says whether there was somebody.
    fn put_one_out(&mut self, newcomer: Lane) -> bool {
        let before = self.len();
        match self.lowest() {
            Some(lowest) if newcomer.0 < lowest => self.put_out_last_of(lowest),
            _ => self.put_out_for_fewer(newcomer),
        }
        self.turns.retain(|turn| self.waiting.iter().any(|(lane, _)| lane == turn));
        self.len() < before
    }

    /// Who came last of those who are not called, or else who was called last.
    fn put_out_last_of(&mut self, class: Priority) {
        match self.waiting.iter().rposition(|((other, _), _)| *other == class) {
            Some(last) => _ = self.waiting.remove(last),
            None => _ = self.called.pop(),
        }
    }

    /// Of those who are not called, and of a source that has more in the line than the newcomer's will have
    /// then: of that which has the most, who came last.
    fn put_out_for_fewer(&mut self, newcomer: Lane) {
        let size = |lane| self.waiting.iter().chain(&self.called).filter(|(other, _)| *other == lane).count();
        let of_class = (0..self.waiting.len()).filter(|place| self.waiting[*place].0.0 == newcomer.0);
        let last = of_class.max_by_key(|place| (size(self.waiting[*place].0), *place));
        if let Some(last) = last.filter(|last| size(self.waiting[*last].0) > size(newcomer) + 1) {
            self.waiting.remove(last);
        }
    }

    /// As many as may ask are called, and of a higher class all that would ask before them.
    fn call(&mut self) {
        while let Some(class) = self.turns.iter().map(|(class, _)| *class).min()
            && self.called.get(self.width() - 1).is_none_or(|((last, _), _)| class < *last)
        {
            let turn = self.turns.iter().position(|(other, _)| *other == class);
            let lane = self.turns.remove(turn.expect("somebody of that class has it"));
            let first = self.waiting.iter().position(|(other, _)| *other == lane);
            let (_, client) = self.waiting.remove(first.expect("a turn is of somebody who waits"));
            let behind = self.called.iter().position(|((other, _), _)| *other > class);
            self.called.insert(behind.unwrap_or(self.called.len()), (lane, client));
            if self.waiting.iter().any(|(other, _)| *other == lane) {
                self.turns.push(lane);
            }
        }
        if self.len() == 0 {
            self.width = 1;
        }
    }
}
