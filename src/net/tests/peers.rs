//! Both peers of one connection, played by one thread without ever blocking.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Token};
use socket2::{Domain, Socket, Type};

use super::Shared;
use super::script::{Fate, Leave, Scene, Script};
use crate::net::Side;
use crate::sys::socket;

/// How long nothing may move on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A flood that has not moved for so long has filled every buffer on its way.
const STUCK_AFTER: Duration = Duration::from_millis(10);

/// What each side has heard before bulk and messages are under way.
const UNDER_WAY: [(Scene, usize); 3] =
    [(Scene::Messages, 4_000), (Scene::Bulk, 600_000), (Scene::Failing, 4_000)];

/// What a side says before it closes its direction.
const SAID_BEFORE_HALF_CLOSE: usize = 20_000;

/// One peer.
struct End {
    stream: Option<TcpStream>,
    said: usize,
    to_say: usize,
    /// Where its words stand among [`Shared::words`]: no two peers say the same.
    voice: usize,
    heard: usize,
    is_reading: bool,
    has_finished: bool,
    /// It has heard the end, or an error.
    has_heard_end: bool,
    error: Option<io::Error>,
}

/// Plays one connection to its end. Panics when the relay does something else than it should.
pub(super) fn play(script: &Script, shared: &Shared) {
    let address = script.address();
    let server = script.has_server().then(|| {
        let listener = TcpListener::bind((address, shared.server_port)).expect("a listener for the server");
        listener.set_nonblocking(true).unwrap();
        listener
    });
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.bind(&SocketAddr::from((address, 0)).into()).unwrap();
    let front = shared.fronts[script.number as usize % 2];
    client.connect(&front.into()).expect("the relay takes clients");
    let mut scene = Play::new(script, shared, client.into());
    if matches!(script.scene, Scene::Accepted | Scene::Dialling { .. }) {
        scene.end_before_the_relay();
    } else {
        scene.take_server(&server.expect("this scene has a server"));
        scene.play();
    }
}

struct Play<'a> {
    script: &'a Script,
    shared: &'a Shared,
    ends: [End; 2],
    poll: mio::Poll,
    events: Events,
    moved_at: Instant,
}

impl<'a> Play<'a> {
    fn new(script: &'a Script, shared: &'a Shared, client: TcpStream) -> Self {
        let end = |side: usize| End {
            stream: None,
            said: 0,
            to_say: script.lengths[side],
            voice: (script.number as usize * 2 + side) * 7919 % shared.words.len(),
            heard: 0,
            is_reading: true,
            has_finished: false,
            has_heard_end: false,
            error: None,
        };
        let now = Instant::now();
        let mut play = Play {
            script,
            shared,
            ends: [end(0), end(1)],
            poll: mio::Poll::new().unwrap(),
            events: Events::with_capacity(8),
            moved_at: now,
        };
        play.join(Side::Client, client);
        play
    }

    fn join(&mut self, side: Side, stream: TcpStream) {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        self.watch(stream.as_raw_fd());
        self.ends[side as usize].stream = Some(stream);
    }

    fn watch(&self, fd: i32) {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&fd), Token(0), both).unwrap();
    }

    fn wait(&mut self, patience: Duration) {
        match self.poll.poll(&mut self.events, Some(patience)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
        if self.shared.is_broken.load(Ordering::Acquire) {
            std::panic::resume_unwind(Box::new("another thread has failed, and said why"));
        }
        assert!(self.moved_at.elapsed() < PATIENCE, "stalled: {}", self.told());
    }

    /// The client leaves, or sees that it has been given up.
    fn end_before_the_relay(&mut self) {
        match self.script.fate {
            Fate::Left { client: Some(leave), .. } => self.leave(Side::Client, leave),
            _ => self.until(|play| play.has_ended(Side::Client)),
        }
    }

    fn take_server(&mut self, listener: &TcpListener) {
        self.watch(listener.as_raw_fd());
        let server = loop {
            match listener.accept() {
                Ok((server, _)) => break server,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(STUCK_AFTER),
                Err(error) => panic!("accept: {error}"),
            }
        };
        self.join(Side::Server, server);
    }

    fn play(&mut self) {
        match self.script.scene {
            Scene::Stuck(deaf) => self.ends[deaf as usize].is_reading = false,
            Scene::HalfClosed(side) => self.ends[side as usize].to_say = SAID_BEFORE_HALF_CLOSE,
            _ => {}
        }
        if self.script.fate == Fate::Kept {
            return self.play_to_the_end();
        }
        self.until(Self::is_set);
        self.shared.set_scene(self.script.number);
        match self.script.scene {
            Scene::Ending => self.finish_both(),
            Scene::Failing => self.leave(Side::Client, Leave::Reset),
            _ => {}
        }
        match self.script.fate {
            Fate::Left { client, server } => {
                client.into_iter().for_each(|leave| self.leave(Side::Client, leave));
                server.into_iter().for_each(|leave| self.leave(Side::Server, leave));
                self.until(Self::is_over);
            }
            _ => self.until(Self::is_over),
        }
    }

    /// Everything said is heard, and the ends are clean.
    fn play_to_the_end(&mut self) {
        self.until(|play| {
            [Side::Client, Side::Server].into_iter().for_each(|side| play.finish_if_said(side));
            play.has_ended(Side::Client) && play.has_ended(Side::Server)
        });
        for side in [0, 1] {
            let (hearer, teller) = (&self.ends[side], &self.ends[1 - side]);
            let is_whole = hearer.error.is_none() && hearer.heard == teller.to_say;
            assert!(is_whole, "torn: {}", self.told());
        }
    }

    /// The scene in which the connection meets its fate is set.
    fn is_set(&mut self) -> bool {
        let [client, server] = &self.ends;
        assert!(client.error.is_none() && server.error.is_none(), "ended early: {}", self.told());
        let heard = client.heard.min(server.heard);
        match self.script.scene {
            Scene::Stuck(_) => self.moved_at.elapsed() > STUCK_AFTER && heard == 0,
            Scene::HalfClosed(side) => {
                self.finish_if_said(side);
                self.has_ended(side.other())
            }
            Scene::Ending => client.said + server.said >= client.to_say + server.to_say,
            scene => UNDER_WAY.iter().any(|(of, enough)| scene == *of && heard >= *enough),
        }
    }

    /// Both peers know; those who have to be told by their peer's end are.
    fn is_over(&mut self) -> bool {
        if self.ends.iter().any(|end| end.has_heard_end) {
            self.ends.iter_mut().for_each(|end| end.is_reading = true);
        }
        for side in [Side::Client, Side::Server] {
            if self.ends[side as usize].has_heard_end && self.is_left_alone(side) {
                self.leave(side, Leave::Close);
            }
        }
        self.has_ended(Side::Client) && self.has_ended(Side::Server)
    }

    /// Nobody but this side is left to end the connection.
    fn is_left_alone(&self, side: Side) -> bool {
        self.ends[side as usize].stream.is_some() && matches!(self.script.fate, Fate::Left { .. })
    }

    fn has_ended(&self, side: Side) -> bool {
        let end = &self.ends[side as usize];
        end.stream.is_none() || end.has_heard_end
    }

    fn finish_both(&mut self) {
        for end in &mut self.ends {
            end.to_say = end.said;
        }
        self.finish_if_said(Side::Client);
        self.finish_if_said(Side::Server);
    }

    fn finish_if_said(&mut self, side: Side) {
        let end = &mut self.ends[side as usize];
        if end.said >= end.to_say && !std::mem::replace(&mut end.has_finished, true) {
            // Fails when the relay has reset it meanwhile, which reading tells.
            let _ = end.stream.as_ref().map(|stream| stream.shutdown(Shutdown::Write));
        }
    }

    /// Gone. What the other side hears of it now comes through the relay; it listens, and says
    /// nothing more.
    fn leave(&mut self, side: Side, leave: Leave) {
        let Some(stream) = self.ends[side as usize].stream.take() else { return };
        match leave {
            Leave::Reset => socket::reset(stream.into()),
            Leave::Close => drop(stream),
        }
        let other = &mut self.ends[side.other() as usize];
        other.is_reading = true;
        other.to_say = other.said;
    }

    fn until(&mut self, mut is_there: impl FnMut(&mut Self) -> bool) {
        loop {
            let has_moved = self.hear(Side::Client)
                | self.hear(Side::Server)
                | self.say(Side::Client)
                | self.say(Side::Server);
            if has_moved {
                self.moved_at = Instant::now();
            }
            if is_there(self) {
                return;
            }
            if !has_moved {
                self.wait(STUCK_AFTER + Duration::from_millis(1));
            }
        }
    }

    /// Reads once, and holds the words to what the other side says at this place.
    fn hear(&mut self, side: Side) -> bool {
        let teller = self.ends[side.other() as usize].voice;
        let end = &mut self.ends[side as usize];
        let Some(mut stream) = end.stream.as_ref().filter(|_| end.is_reading && !end.has_heard_end) else {
            return false;
        };
        let mut chunk = [0; 32 * 1024];
        match stream.read(&mut chunk) {
            Ok(0) => end.has_heard_end = true,
            Ok(read) => {
                let is_right = self.shared.is_said(teller + end.heard, &chunk[..read]);
                end.heard += read;
                assert!(is_right, "foreign bytes: {}", self.told());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => (end.has_heard_end, end.error) = (true, Some(error)),
        }
        true
    }

    /// Writes once, as far as the window lets it.
    fn say(&mut self, side: Side) -> bool {
        let heard = self.ends[side.other() as usize].heard;
        let end = &mut self.ends[side as usize];
        let window = if self.script.scene == Scene::Messages { self.script.window } else { usize::MAX };
        let open = window.saturating_sub(end.said - heard).min(end.to_say - end.said);
        let Some(mut stream) =
            end.stream.as_ref().filter(|_| open > 0 && end.error.is_none() && !end.has_finished)
        else {
            return false;
        };
        match stream.write(self.shared.words_at(end.voice + end.said, open.min(64 * 1024))) {
            Ok(written) => end.said += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => end.error = Some(error), // reading finds what came before it
        }
        true
    }

    fn told(&self) -> String {
        let end = |end: &End| {
            let End { said, to_say, heard, has_heard_end, error, .. } = end;
            format!("said {said} of {to_say}, heard {heard}, has heard the end: {has_heard_end}, {error:?}")
        };
        let [client, server] = &self.ends;
        format!("{:?}\n client {}\n server {}", self.script, end(client), end(server))
    }
}
