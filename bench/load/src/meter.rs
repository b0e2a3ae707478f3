//! What is counted while a scenario runs: units, errors, latencies, and the window they count in.
//!
//! A thread writes only to its own counters. Units are counted all the time and read at both
//! edges of the window; latencies are kept when the unit's own beginning lies in the window, so
//! that what began during the warm-up says nothing about the window.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hdrhistogram::Histogram;

/// Clients come from so many addresses, 127.0.0.10 on: more source ports than any window can use up.
const SOURCES: usize = 16;

/// Latencies up to a minute, to three digits.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// What can go wrong with one unit.
#[derive(Clone, Copy)]
pub enum Fault {
    /// The connection was refused, timed out, or could not be made here.
    Connect,
    /// Reset by the other side, or any other failure of an open connection.
    Reset,
    /// The end of the stream came before the whole answer.
    Short,
    /// More bytes than were asked for.
    Excess,
    /// No answer had come when the run ended.
    Lost,
    /// An alert, or something that is no TLS or not what was to be sent.
    Tls,
}

pub const FAULTS: [&str; 6] = ["connect", "reset", "short", "excess", "lost", "tls"];

/// The counters of one thread, on cache lines of their own.
#[derive(Default)]
#[repr(align(128))]
struct Tally {
    units: AtomicU64,
    resumed: AtomicU64,
    faults: [AtomicU64; FAULTS.len()],
}

/// What all threads of a run share.
pub struct Run {
    pub targets: Vec<SocketAddrV4>,
    pub threads: usize,
    pub seed: u64,
    started: Instant,
    begin_ns: AtomicU64,
    end_ns: AtomicU64,
    stop: AtomicBool,
    tallies: Vec<Tally>,
}

impl Run {
    pub fn new(targets: Vec<SocketAddrV4>, threads: usize, seed: u64) -> Self {
        Run {
            targets,
            threads,
            seed,
            started: Instant::now(),
            begin_ns: AtomicU64::new(u64::MAX),
            end_ns: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
            tallies: (0..threads).map(|_| Tally::default()).collect(),
        }
    }

    pub fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    pub fn open_window(&self) {
        self.begin_ns.store(self.now_ns(), Relaxed);
    }

    pub fn close_window(&self) {
        self.end_ns.store(self.now_ns(), Relaxed);
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Units so far, of all threads.
    pub fn units(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.units.load(Relaxed)).sum()
    }

    /// How many of the units were resumed TLS sessions.
    pub fn resumed(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.resumed.load(Relaxed)).sum()
    }

    /// Errors so far, in the order of [`FAULTS`]: also those outside the window.
    pub fn faults(&self) -> [u64; FAULTS.len()] {
        std::array::from_fn(|kind| self.tallies.iter().map(|tally| tally.faults[kind].load(Relaxed)).sum())
    }

    /// Where connection `number` comes from, and where it goes.
    pub fn ends(&self, number: usize) -> (SocketAddrV4, SocketAddrV4) {
        let source = Ipv4Addr::new(127, 0, 0, 10 + (number % SOURCES) as u8);
        (SocketAddrV4::new(source, 0), self.targets[number % self.targets.len()])
    }
}

/// One thread's view of the run.
pub struct Meter<'a> {
    pub run: &'a Run,
    pub thread: usize,
    tally: &'a Tally,
    pub latencies: Histogram<u64>,
}

impl<'a> Meter<'a> {
    pub fn new(run: &'a Run, thread: usize) -> Self {
        let latencies =
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds that the crate takes");
        Meter { run, thread, tally: &run.tallies[thread], latencies }
    }

    /// The numbers of this thread's connections among `total`.
    pub fn share(&self, total: usize) -> impl Iterator<Item = usize> + use<> {
        (self.thread..total).step_by(self.run.threads)
    }

    pub fn count(&self, units: u64) {
        // Only this thread writes: a load and a store are enough.
        self.tally.units.store(self.tally.units.load(Relaxed) + units, Relaxed);
    }

    /// Says of the unit that was completed last whether its TLS session was resumed.
    pub fn count_resumed(&self, is_resumed: bool) {
        // Only this thread writes, as above.
        self.tally.resumed.store(self.tally.resumed.load(Relaxed) + u64::from(is_resumed), Relaxed);
    }

    /// One unit that began at `began_ns` is complete.
    pub fn complete(&mut self, began_ns: u64) {
        self.count(1);
        if self.is_in_window(began_ns) {
            let took = self.run.now_ns().saturating_sub(began_ns);
            self.latencies.saturating_record(took);
        }
    }

    pub fn fault(&self, kind: Fault) {
        self.tally.faults[kind as usize].fetch_add(1, Relaxed);
    }

    pub fn is_in_window(&self, instant_ns: u64) -> bool {
        instant_ns >= self.run.begin_ns.load(Relaxed) && instant_ns < self.run.end_ns.load(Relaxed)
    }
}
