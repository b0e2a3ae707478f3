//! Records on their way from a worker to the writer: `telemetry/access_log/ring.rs`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use loom::thread;
use tidegate_races::core::outcome::{By, Close, How, Phase, Reason};
use tidegate_races::core::priority::Priority;
use tidegate_races::telemetry::access_log::ring::Ring;
use tidegate_races::telemetry::access_log::{When, drain, park_writer};
use tidegate_races::telemetry::record::{Record, Times};

use crate::{in_every_order, join, with_preemptions};

fn record() -> Record {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    Record {
        ts: SystemTime::UNIX_EPOCH,
        conn_id: 1,
        listener: String::new(),
        worker: 0,
        generation: 1,
        client: nobody,
        local: nobody,
        route: None,
        routed: None,
        priority: Priority::default(),
        attempts: Vec::new(),
        times: Times::default(),
        bytes_in: 0,
        bytes_out: 0,
        path: None,
        close: Close {
            by: By::Server,
            phase: Phase::Data,
            how: How::Fin,
            reason: Reason::Done,
            errno: None,
            detail: "".into(),
        },
    }
}

#[test]
fn the_writer_sleeps_through_no_record() {
    in_every_order(|| {
        let ring = Arc::new(Ring::new(When::Always, 1, 9));
        let worker = thread::spawn({
            let ring = Arc::clone(&ring);
            move || (0..2).for_each(|_| ring.offer(record()))
        });
        let mut written = 0;
        while written < 2 {
            match drain(&ring) {
                0 => park_writer(&ring),
                some => written += some,
            }
        }
        join([worker]);
        assert_eq!(ring.dropped(), 0);
    });
}

#[test]
fn every_record_is_written_or_counted_as_dropped() {
    with_preemptions(3, || {
        let ring = Arc::new(Ring::new(When::Always, 1, 1));
        let worker = thread::spawn({
            let ring = Arc::clone(&ring);
            move || (0..3).for_each(|_| ring.offer(record()))
        });
        let written = drain(&ring) + drain(&ring);
        join([worker]);
        assert_eq!(written + drain(&ring) + ring.dropped() as usize, 3);
    });
}
