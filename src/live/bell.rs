//! Tells one who watches that something has changed, without saying what.
//!
//! Whoever rings never waits and hands nothing over: the one who watches looks for himself, and finds all
//! that has happened since, however often it rang. So nothing is lost, and nothing can fill up.

use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
pub struct Bell {
    is_rung: AtomicBool,
    /// Of the one who watches, while he waits.
    watcher: Mutex<Option<Waker>>,
}

impl Bell {
    /// One swap while the last ring has not been heard.
    pub fn ring(&self) {
        // Whoever rings and who waits both swap the flag, and one of them comes second: either he finds it
        // set, or we come after him, and his waker is there.
        if self.is_rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    /// Ends when it has rung since it last ended. There is one who watches: of two, one would miss it.
    pub fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_rung.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if self.is_rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_ring_is_heard_once_whether_it_comes_before_the_wait_or_during_it() {
        let (bell, wakes) = (Bell::default(), Arc::new(Wakes::default()));
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        bell.ring();
        assert_eq!([bell.poll_rung(&cx), bell.poll_rung(&cx)], [Poll::Ready(()), Poll::Pending]);
        (0..5).for_each(|_| bell.ring());
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert_eq!([bell.poll_rung(&cx), bell.poll_rung(&cx)], [Poll::Ready(()), Poll::Pending]);
    }
}
