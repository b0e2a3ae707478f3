//! What happened, as numbers and as records. Written by `data/`, read by `control/`.

pub mod counters; // one cell per worker, summed at scrape
pub mod histogram; // durations in fixed buckets
pub mod stats; // which counters a listener, a server and a flow between them have
pub mod record; // one connection's story
pub mod access_log; // records on their way to a file, through a bounded ring
