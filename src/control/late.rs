//! Checks of one server that it did not answer in time, and that must not be broken off: MySQL holds each login
//! that comes to no end against our whole host, and a server that hangs would find all those of its pause when it
//! goes on (`max_connect_errors`).
//!
//! Each goes on until the server answers or closes. While one is open the next check waits for it, and makes no
//! connection of its own; but a connection may be lost for itself (a proxy on the way), so after a while
//! another is tried.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::turns::Place;

/// Open at once for one server: the first, and others after 1, 4 and 16 minutes more.
const OPEN_MAX: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// After so long one is broken off after all. Over a stop without end these are two errors an hour, where
/// MySQL takes a hundred by default.
const OPEN_WITHIN: Duration = Duration::from_secs(2 * 3600);

#[derive(Default)]
pub struct Late {
    open: JoinSet<()>,
    /// When the oldest and the latest of them began.
    since: Option<(Instant, Instant)>,
}

impl Late {
    /// Lets that one go on, which began then.
    pub fn keep(&mut self, check: impl Future<Output = ()> + Send + 'static, begun: Instant, place: Place) {
        self.reap();
        let oldest = self.since.map_or(begun, |(oldest, _)| oldest);
        self.since = Some((oldest, begun));
        self.open.spawn(async move {
            let _ = timeout(OPEN_WITHIN, check).await;
            drop(place);
        });
    }

    /// When the oldest that is open began.
    pub fn since(&self) -> Option<Instant> {
        self.since.map(|(oldest, _)| oldest)
    }

    /// Waits until another check may begin.
    pub async fn cleared(&mut self) {
        loop {
            self.reap();
            let Some((_, latest)) = self.since else { return };
            let count = self.open.len();
            let next = latest + FIRST_PAUSE * 4u32.pow(count.clamp(1, OPEN_MAX) as u32 - 1);
            if count < OPEN_MAX && next <= Instant::now() {
                return;
            }
            tokio::select! {
                _ = self.open.join_next() => {}
                () = sleep_until(next), if count < OPEN_MAX => {}
            }
        }
    }

    /// The server has passed another check: whatever is open ends by itself, and nobody waits for it.
    pub fn let_go(&mut self) {
        self.open.detach_all();
        self.since = None;
    }

    fn reap(&mut self) {
        while self.open.try_join_next().is_some() {}
        if self.open.is_empty() {
            self.since = None;
        }
    }
}

impl Drop for Late {
    /// They outlive the check that made them.
    fn drop(&mut self) {
        self.open.detach_all();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;

    use tokio::sync::{Notify, Semaphore};

    use super::*;

    async fn place() -> Place {
        Arc::new(Semaphore::new(1)).acquire_owned().await.expect("open")
    }

    async fn is_clear(late: &mut Late) -> bool {
        timeout(Duration::from_millis(1), late.cleared()).await.is_ok()
    }

    #[tokio::test]
    async fn the_next_check_waits_for_the_one_that_is_open() {
        let (mut late, answer) = (Late::default(), Arc::new(Notify::new()));
        assert!(is_clear(&mut late).await && late.since().is_none());
        let answered = Arc::clone(&answer);
        late.keep(async move { answered.notified().await }, Instant::now(), place().await);
        assert!(!is_clear(&mut late).await && late.since().is_some());
        answer.notify_one();
        late.cleared().await;
        assert!(late.since().is_none());
    }

    #[tokio::test]
    async fn now_and_then_another_is_tried_but_never_more_than_four() {
        let (mut late, minute) = (Late::default(), Duration::from_secs(60));
        for minutes in [1, 4, 16] {
            let ago = |pause| Instant::now() - pause;
            late.keep(pending(), ago(minute * minutes - Duration::from_secs(5)), place().await);
            assert!(!is_clear(&mut late).await, "not within {minutes} minutes");
            late.since = Some((ago(minute * 60), ago(minute * minutes)));
            assert!(is_clear(&mut late).await, "after {minutes} minutes");
        }
        late.keep(pending(), Instant::now() - minute * 60, place().await);
        assert!(!is_clear(&mut late).await);
        late.let_go();
        assert!(is_clear(&mut late).await);
    }
}
