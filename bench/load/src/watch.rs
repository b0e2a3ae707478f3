//! What processes and the machine used, read from /proc before and after a window.
//!
//! Reads only; never judges. Times are seconds of CPU. The proxy's are summed from the scheduler's
//! nanoseconds of each of its threads, because the 10 ms steps of `/proc/PID/stat` are one part
//! in twenty of a light scenario's window.

use std::fs;
use std::time::Instant;

use crate::sys;

/// Whom to tell apart: the proxy with all its children, the load with its server, and the rest.
pub struct Watched {
    pub proxy: Option<u32>,
    pub servers: Vec<u32>,
    /// The zero of the machine's time.
    pub started: Instant,
}

/// CPU seconds so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub proxy: f64,
    pub load: f64,
    pub server: f64,
    /// Processes that take no part in the measurement; without kernel threads, whose work is ours.
    pub others: f64,
    /// What was not idle of all cores, without what the hypervisor took.
    pub machine: f64,
    /// What the hypervisor gave to other machines.
    pub stolen: f64,
}

impl Used {
    /// What was used from `before` until now.
    pub fn since(self, before: Used) -> Used {
        Used {
            proxy: self.proxy - before.proxy,
            load: self.load - before.load,
            server: self.server - before.server,
            others: self.others - before.others,
            machine: self.machine - before.machine,
            stolen: self.stolen - before.stolen,
        }
    }
}

/// One process at one moment; `ticks` is its own time, `reaped` that of its ended children.
struct Process {
    pid: u32,
    parent: u32,
    ticks: f64,
    reaped: f64,
}

impl Watched {
    pub fn used(&self) -> Used {
        let rate = sys::ticks_per_second();
        let (machine, stolen) = self.machine_seconds(rate);
        let all = processes();
        let proxy = self.proxy.map_or_else(Vec::new, |root| tree(root, &all));
        let us = std::process::id();
        let mut used = Used { machine, stolen, ..Used::default() };
        for process in &all {
            let own = process.ticks / rate;
            match process.pid {
                pid if proxy.contains(&pid) => used.proxy += thread_seconds(pid).unwrap_or(own),
                pid if pid == us => used.load += own,
                pid if self.servers.contains(&pid) => used.server += own,
                // 2 is kthreadd, the parent of all kernel threads.
                2 => {}
                _ if process.parent == 2 => {}
                // With what its children left behind: a compiler run that fell into the window counts.
                _ => used.others += own + process.reaped / rate,
            }
        }
        used
    }

    /// Busy and stolen seconds of all cores together. Busy is what is left of the time that has passed:
    /// idle time is measured, but busy time is only sampled at ticks, and a scenario whose
    /// timers fall together with the ticks is seen half or twice.
    fn machine_seconds(&self, rate: f64) -> (f64, f64) {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let cores = stat.lines().filter(|line| line.starts_with("cpu")).count().saturating_sub(1);
        let all = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = all.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0.0) / rate;
        // user nice system idle iowait irq softirq steal, as in proc(5)
        let (idle, stolen) = (at(3) + at(4), at(7));
        (cores as f64 * self.started.elapsed().as_secs_f64() - idle - stolen, stolen)
    }

    /// Memory that only the proxy and its children hold, in KiB: what a connection costs in user space.
    pub fn proxy_private_kib(&self) -> u64 {
        let Some(root) = self.proxy else { return 0 };
        let pids = tree(root, &processes());
        pids.into_iter().map(private_kib).sum()
    }
}

/// `root` and everything that descends from it.
fn tree(root: u32, all: &[Process]) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.pid));
        next += 1; // each process has one parent, so none is found twice
    }
    found
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(process).collect()
}

/// `None` when it has ended meanwhile.
fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name may hold spaces and brackets; what follows the last bracket is from field 3 on (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|word| word.parse::<f64>().ok());
    Some(Process {
        pid,
        parent: field(4)? as u32,
        ticks: field(14)? + field(15)?,
        reaped: field(16)? + field(17)?,
    })
}

/// The time that the scheduler gave to all threads of a process.
fn thread_seconds(pid: u32) -> Option<f64> {
    let mut total = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        total += text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9;
    }
    Some(total)
}

fn private_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}
