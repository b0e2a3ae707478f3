//! io_uring: operations in, events out.
//!
//! Whatever the kernel may touch while an operation is in flight (a buffer, an address, bytes to
//! send) is owned here, from the submission to the last event of the operation, and by nobody
//! else. An operation's number is given to another only when that event, and all that were taken
//! together with it, have been dealt with. So no caller, and no future that is dropped, can free or
//! reuse what the kernel still works on, or cancel an operation that it did not begin.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use slab::Slab;
use socket2::SockAddr;

/// Operations that can be queued before the kernel is told; more are told in between.
const QUEUE: u32 = 1024;
/// Events that fit before the kernel has to keep them for us.
const EVENTS: u32 = 8192;
/// Receive buffers of a worker. 16 made receivers wait for each other; bulk is spliced and needs none.
const BUFFERS: u16 = 64;
/// A message; a longer one comes in parts.
pub const BUFFER_BYTES: usize = 16 * 1024;
const GROUP: u16 = 0;
/// The mark of operations whose event nobody waits for.
const UNTOLD: u64 = u64::MAX;

/// A receive buffer with bytes in it. It goes back by [`Ring::give_back`].
#[derive(Debug)]
pub struct Chunk {
    id: u16,
    len: usize,
}

impl Chunk {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// An operation in flight. Numbers are reused, but not before events are taken once more after the
/// last one: until then its owner may still want to cancel it, not having come to that event yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op(u32);

/// What the kernel has to say of an operation.
#[derive(Debug)]
pub struct Event<T> {
    pub token: T,
    /// The operation's result, or its error.
    pub result: io::Result<u32>,
    /// What was received, or what was to be sent.
    pub chunk: Option<Chunk>,
    /// What was to be sent from memory of its own.
    pub bytes: Option<Vec<u8>>,
    /// Who was accepted.
    pub client: Option<OwnedFd>,
    /// More bytes wait at the socket already.
    pub has_more_bytes: bool,
    /// The operation goes on and will tell more.
    pub goes_on: bool,
}

/// What an operation keeps alive.
enum Cargo {
    Nothing,
    /// The operation's results are descriptors.
    Clients,
    Chunk(Chunk),
    Bytes(Vec<u8>),
    /// Kept for the kernel alone.
    Address(#[allow(dead_code, reason = "owned for the kernel, which reads it")] Box<SockAddr>),
}

/// One ring, for the thread that made it. `T` says what an operation is for.
pub struct Ring<T> {
    ring: IoUring,
    buffers: Buffers,
    /// Buffers with bytes in them, in our hands or being sent.
    buffers_out: usize,
    flights: Slab<(T, Cargo)>,
    /// Whose last event has just been taken.
    landed: Vec<usize>,
}

impl<T: Copy> Ring<T> {
    /// # Errors
    /// Where the kernel is too old, or denies io_uring (containers often do).
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(EVENTS)
            .build(QUEUE)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::AcceptMulti::CODE,
            opcode::AsyncCancel::CODE,
            opcode::Connect::CODE,
            opcode::PollAdd::CODE,
            opcode::Recv::CODE,
            opcode::Send::CODE,
        ];
        if let Some(missing) = needed.into_iter().find(|code| !probe.is_supported(*code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("no operation {missing}")));
        }
        // The ring's own descriptor need not be looked up at each call, where the kernel knows how.
        let _ = ring.submitter().register_ring_fd();
        let buffers = Buffers::register(&ring)?;
        // A filter may allow a ring and deny the call that uses it: better known now.
        ring.submitter().submit()?;
        Ok(Ring { ring, buffers, buffers_out: 0, flights: Slab::new(), landed: Vec::new() })
    }

    /// Takes clients from a listening socket until it is cancelled; each is an event whose result
    /// is a descriptor.
    pub fn accept(&mut self, listener: BorrowedFd<'_>, token: T) -> Op {
        let flags = nix::libc::SOCK_NONBLOCK | nix::libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(flags).build();
        self.fly(entry, token, Cargo::Clients)
    }

    pub fn connect(&mut self, socket: BorrowedFd<'_>, to: SocketAddr, token: T) -> Op {
        let address = Box::new(SockAddr::from(to));
        let entry =
            opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len()).build();
        self.fly(entry, token, Cargo::Address(address))
    }

    /// Receives into a buffer of ours. `is_quiet` says that nothing is expected at once.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, is_quiet: bool, token: T) -> Op {
        /// IORING_RECVSEND_POLL_FIRST: wait for bytes before looking for them.
        const POLL_FIRST: u16 = 1;
        let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), std::ptr::null_mut(), BUFFER_BYTES as u32)
            .buf_group(GROUP)
            .ioprio(if is_quiet { POLL_FIRST } else { 0 })
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.fly(entry, token, Cargo::Nothing)
    }

    /// Sends what fits at once. The chunk comes back with the event.
    pub fn send(&mut self, socket: BorrowedFd<'_>, chunk: Chunk, token: T) -> Op {
        let flags = nix::libc::MSG_NOSIGNAL | nix::libc::MSG_DONTWAIT;
        let start = self.buffers.start(chunk.id);
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), start, chunk.len as u32).flags(flags).build();
        self.fly(entry, token, Cargo::Chunk(chunk))
    }

    /// Sends what fits as soon as something does: from memory of its own, so that a slow reader
    /// holds no buffer that others wait for. The bytes come back with the event.
    ///
    /// Not with MSG_WAITALL: after a part has gone it swallows the error that stops the rest, and
    /// then nobody can tell a reset from a clean end.
    pub fn send_bytes(&mut self, socket: BorrowedFd<'_>, bytes: Vec<u8>, token: T) -> Op {
        let flags = nix::libc::MSG_NOSIGNAL;
        let length = u32::try_from(bytes.len()).expect("no more than a buffer");
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), length).flags(flags).build();
        self.fly(entry, token, Cargo::Bytes(bytes))
    }

    /// One event when the socket is ready for `events` (poll(2)), or broken.
    pub fn poll(&mut self, socket: BorrowedFd<'_>, events: u32, token: T) -> Op {
        let entry = opcode::PollAdd::new(Fd(socket.as_raw_fd()), events).build();
        self.fly(entry, token, Cargo::Nothing)
    }

    /// An event each time the descriptor becomes readable anew.
    pub fn poll_again_and_again(&mut self, fd: BorrowedFd<'_>, token: T) -> Op {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), nix::libc::POLLIN as u32).multi(true).build();
        self.fly(entry, token, Cargo::Nothing)
    }

    /// Asks for the end of an operation. Its last event still comes.
    pub fn cancel(&mut self, op: Op) {
        let entry = opcode::AsyncCancel::new(u64::from(op.0)).build();
        self.push(entry.user_data(UNTOLD).flags(squeue::Flags::SKIP_SUCCESS));
    }

    /// Asks for the end of an operation and tells the kernel all that is queued, so that none of it
    /// names a descriptor that is closed afterwards.
    pub fn cancel_now(&mut self, op: Op) {
        self.cancel(op);
        // Fails where the kernel is short of memory; then it takes the queue at the next `enter`.
        let _ = self.ring.submitter().submit();
    }

    /// Closes a descriptor without a system call of its own.
    pub fn close(&mut self, fd: OwnedFd) {
        let entry = opcode::Close::new(Fd(fd.into_raw_fd())).build();
        self.push(entry.user_data(UNTOLD).flags(squeue::Flags::SKIP_SUCCESS));
    }

    /// The kernel has buffers to receive into.
    pub fn has_buffers(&self) -> bool {
        self.buffers_out < usize::from(BUFFERS)
    }

    /// Operations in flight, and buffers that the kernel does not have.
    #[cfg(test)]
    pub fn in_use(&self) -> (usize, usize) {
        (self.flights.len() - self.landed.len(), self.buffers_out)
    }

    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        // SAFETY: a buffer is `BUFFER_BYTES` long and lives as long as the ring; `len` is what the
        // kernel said it has written, at most that. While a `Chunk` is in a caller's hands the
        // kernel has no operation on its buffer: `send` takes the chunk, `give_back` too.
        unsafe { std::slice::from_raw_parts(self.buffers.start(chunk.id), chunk.len) }
    }

    /// Lends the buffer to the kernel again.
    pub fn give_back(&mut self, chunk: Chunk) {
        self.buffers_out -= 1;
        self.buffers.lend(chunk.id);
    }

    /// Tells the kernel what is queued and waits for an event, `patience` at the most; `None` is
    /// for ever, zero does not wait.
    ///
    /// # Errors
    /// As io_uring_enter(2) gives them, except those that mean "later" or "nothing came".
    pub fn enter(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let entered = match patience {
            Some(Duration::ZERO) => submitter.submit(),
            None => submitter.submit_and_wait(1),
            Some(patience) => {
                let limit = Timespec::from(patience);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match entered {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(nix::libc::ETIME | nix::libc::EINTR | nix::libc::EAGAIN | nix::libc::EBUSY)
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Moves what has been told into `events`. Those taken before have been dealt with.
    pub fn take_events(&mut self, events: &mut Vec<Event<T>>) {
        for key in self.landed.drain(..) {
            self.flights.remove(key);
        }
        let completions: &mut cqueue::CompletionQueue<'_> = &mut self.ring.completion();
        for told in completions {
            if told.user_data() == UNTOLD {
                continue;
            }
            let key = told.user_data() as usize;
            let goes_on = cqueue::more(told.flags());
            let result = told.result();
            let received = cqueue::buffer_select(told.flags());
            let (token, cargo) = &mut self.flights[key];
            let (token, are_clients) = (*token, matches!(cargo, Cargo::Clients));
            let cargo = if goes_on {
                Cargo::Nothing
            } else {
                self.landed.push(key);
                std::mem::replace(cargo, Cargo::Nothing)
            };
            let client = (are_clients && result >= 0).then(|| {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                unsafe { OwnedFd::from_raw_fd(result) }
            });
            let (cargo, bytes) = match cargo {
                Cargo::Bytes(bytes) => (Cargo::Nothing, Some(bytes)),
                other => (other, None),
            };
            let chunk = match (received, cargo) {
                (Some(id), _) => {
                    self.buffers_out += 1;
                    Some(Chunk { id, len: result.max(0) as usize })
                }
                (None, Cargo::Chunk(chunk)) => Some(chunk),
                _ => None,
            };
            events.push(Event {
                token,
                result: u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)),
                chunk,
                bytes,
                client,
                has_more_bytes: cqueue::sock_nonempty(told.flags()),
                goes_on,
            });
        }
    }

    fn fly(&mut self, entry: squeue::Entry, token: T, cargo: Cargo) -> Op {
        let key = self.flights.insert((token, cargo));
        self.push(entry.user_data(key as u64));
        Op(u32::try_from(key).expect("fewer operations than 2^32"))
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is owned by `flights` until its last event, or by
            // `buffers`, which live as long as the ring; descriptors are open when it is submitted,
            // because their owners cancel what is in flight and are told before they close.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: tell the kernel, which empties it.
            let _ = self.ring.submitter().submit();
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // Closing the ring ends every operation, and the kernel waits for nobody: what they point
        // to must outlive them, so it is left to the end of the process. One ring per thread ends.
        std::mem::take(&mut self.flights).into_iter().for_each(|(_, (_, cargo))| std::mem::forget(cargo));
    }
}

/// Receive buffers, and the ring through which the kernel takes them.
struct Buffers {
    memory: NonNull<u8>,
    entries: NonNull<BufRingEntry>,
    tail: u16,
}

impl Buffers {
    const MEMORY: Layout = match Layout::from_size_align(BUFFERS as usize * BUFFER_BYTES, 4096) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };
    const ENTRIES: Layout = match Layout::from_size_align(BUFFERS as usize * size_of::<BufRingEntry>(), 4096)
    {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };

    fn register(ring: &IoUring) -> io::Result<Self> {
        // SAFETY: neither layout is of size zero.
        let (memory, entries) = unsafe { (alloc_zeroed(Self::MEMORY), alloc_zeroed(Self::ENTRIES)) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(Self::MEMORY));
        let entries = NonNull::new(entries.cast()).unwrap_or_else(|| handle_alloc_error(Self::ENTRIES));
        let mut buffers = Buffers { memory, entries, tail: 0 };
        let at = buffers.entries.as_ptr() as u64;
        // SAFETY: the entries are page-aligned, zeroed, and never freed: see `Drop` of the ring.
        unsafe { ring.submitter().register_buf_ring_with_flags(at, BUFFERS, GROUP, 0)? };
        (0..BUFFERS).for_each(|id| buffers.lend(id));
        Ok(buffers)
    }

    fn start(&self, id: u16) -> *const u8 {
        assert!(id < BUFFERS, "the kernel names buffers that it was given");
        // SAFETY: within the allocation, by the line above.
        unsafe { self.memory.as_ptr().add(id as usize * BUFFER_BYTES) }
    }

    fn lend(&mut self, id: u16) {
        let at = self.start(id) as u64;
        // SAFETY: the index is below the number of entries, which is a power of two. The kernel
        // reads an entry only after the tail has passed it, which the release store below says.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add((self.tail & (BUFFERS - 1)) as usize);
            entry.set_addr(at);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn told<T: Copy>(ring: &mut Ring<T>) -> Vec<(T, bool)> {
        let mut events = Vec::new();
        ring.enter(Some(Duration::from_millis(20))).unwrap();
        ring.take_events(&mut events);
        events.into_iter().map(|event| (event.token, event.result.is_ok())).collect()
    }

    /// Events are taken many at a time. While the first of them is dealt with, and begins something
    /// new, the owner of the next still takes its operation for one in flight, and may cancel it.
    #[test]
    fn cancelling_an_operation_that_has_just_ended_does_not_hit_one_begun_since() {
        let Ok(mut ring) = Ring::new() else { return };
        let (spoken_to, mut speaker) = UnixStream::pair().unwrap();
        let (quiet, _other) = UnixStream::pair().unwrap();
        let pollin = nix::libc::POLLIN as u32;
        let ended = ring.poll(spoken_to.as_fd(), pollin, "ended");
        speaker.write_all(b"!").unwrap();
        assert_eq!(told(&mut ring), [("ended", true)]);
        ring.poll(quiet.as_fd(), pollin, "begun since");
        ring.cancel(ended);
        assert_eq!(told(&mut ring), []);
    }
}
