//! Who waits, and whose turn it is.

/// Clients that ask at the same time, at the most.
const WIDTH_MAX: usize = 64;

/// Of clients by number, from sources by number.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    /// In the order of coming.
    waiting: Vec<(u128, u64)>,
    /// Sources of those, the one whose turn it is first.
    turns: Vec<u128>,
    called: Vec<u64>,
    width: usize,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.waiting.len() + self.called.len()
    }

    pub fn join(&mut self, source: u128, client: u64) {
        self.waiting.push((source, client));
        if !self.turns.contains(&source) {
            self.turns.push(source);
        }
        self.call();
    }

    pub fn may_ask(&self, client: u64) -> bool {
        self.called.iter().take(self.width.max(1)).any(|called| *called == client)
    }

    pub fn in_vain(&mut self) {
        self.width = 1;
    }

    pub fn served(&mut self, client: u64) {
        self.width = (self.width.max(1) * 2).min(WIDTH_MAX);
        self.leave(client);
    }

    pub fn leave(&mut self, client: u64) {
        self.called.retain(|called| *called != client);
        self.waiting.retain(|(_, waits)| *waits != client);
        self.turns.retain(|turn| self.waiting.iter().any(|(source, _)| source == turn));
        self.call();
    }

    fn call(&mut self) {
        while self.called.len() < self.width.max(1) && !self.turns.is_empty() {
            let source = self.turns.remove(0);
            let first = self.waiting.iter().position(|(other, _)| *other == source);
            let (_, client) = self.waiting.remove(first.expect("a turn is of somebody who waits"));
            self.called.push(client);
            if self.waiting.iter().any(|(other, _)| *other == source) {
                self.turns.push(source);
            }
        }
        if self.len() == 0 {
            self.width = 1;
        }
    }
}
