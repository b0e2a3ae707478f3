//! The worker threads, watched for their end.
//!
//! A worker ends when it was told to; one that ends by itself would leave its clients standing
//! before a door that nobody opens, so its end is known at once. Joins only; gives no orders.

use std::any::Any;
use std::io;
use std::thread;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::orders::Drained;

/// A watcher's stack: it sleeps in one call.
const WATCHER_STACK_BYTES: usize = 64 * 1024;

pub struct Crew {
    ends: mpsc::Receiver<End>,
    left: usize,
}

/// A worker that is no more.
#[derive(Debug)]
pub struct End {
    pub worker: usize,
    /// How its connections fared, or what it panicked with.
    pub how: Result<Drained, String>,
}

impl Crew {
    /// Watches the threads; one small thread waits for each.
    pub fn new(threads: Vec<JoinHandle<Drained>>) -> io::Result<Self> {
        let left = threads.len();
        let (tell, ends) = mpsc::channel(left.max(1));
        for (worker, thread) in threads.into_iter().enumerate() {
            let tell = tell.clone();
            let watch = move || {
                let how = thread.join().map_err(|panic| panic_text(panic.as_ref()));
                let _ = tell.blocking_send(End { worker, how }); // nobody listens after the end of all
            };
            let watcher = thread::Builder::new().name(format!("end-of-{worker}"));
            watcher.stack_size(WATCHER_STACK_BYTES).spawn(watch)?;
        }
        Ok(Crew { ends, left })
    }

    pub fn left(&self) -> usize {
        self.left
    }

    /// The next worker that ends; waits for ever when none is left.
    pub async fn next_end(&mut self) -> End {
        match self.ends.recv().await {
            Some(end) => {
                self.left -= 1;
                end
            }
            None => std::future::pending().await,
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
