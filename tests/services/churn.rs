//! Ten thousand short connections leave nothing behind.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;

use socket2::{Domain, Socket, Type};

use crate::rig::{Check, Rig};
use crate::support::record::word;
use crate::support::{PATIENCE, Resources, eventually, listen};

const CLIENTS: usize = 8;
const CYCLES_EACH: usize = 1_250;
const WARM_UP_EACH: usize = 25;

/// Echoes until the client ends, for ever. Two of these share the load, so that neither
/// runs out of ports from the one address of the proxy.
fn echo_server() -> u16 {
    let listener = listen("127.0.0.1:0");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            // A client that ends badly is the test's finding on the client's side.
            thread::spawn(move || io::copy(&mut &socket, &mut &socket));
        }
    });
    port
}

/// Connects from a source address of its own, so that closed connections, which keep their port
/// for a minute, do not use up the ports of one address.
fn cycle(to: SocketAddr, client: u8, message: [u8; 64]) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 10 + client), 0)).into())?;
    socket.connect(&to.into())?;
    let mut socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(&message)?;
    let mut reply = [0; 64];
    socket.read_exact(&mut reply)?;
    socket.shutdown(std::net::Shutdown::Write)?;
    let rest = socket.read(&mut [0])?;
    let is_right = reply == message && rest == 0;
    is_right
        .then_some(())
        .ok_or_else(|| io::Error::other(format!("sent {message:?}, got {reply:?} and {rest}")))
}

/// That many cycles from each client; what went wrong.
fn cycles(to: SocketAddr, each: usize) -> Vec<io::Error> {
    let run = |client: u8| (0..each).filter_map(move |count| cycle(to, client, [count as u8; 64]).err());
    thread::scope(|scope| {
        let clients = (0..CLIENTS as u8).map(|client| scope.spawn(move || run(client).collect::<Vec<_>>()));
        let clients: Vec<_> = clients.collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    })
}

#[test]
fn ten_thousand_connections_leave_no_descriptor_no_thread_and_no_count_behind() {
    let rig = Rig::start(&[echo_server(), echo_server()], Check::RetryOnly);

    assert!(cycles(rig.address(), WARM_UP_EACH).is_empty());
    rig.settled();
    let baseline = at_rest(&rig);

    let wrong = cycles(rig.address(), CYCLES_EACH);
    assert!(wrong.is_empty(), "{} of {} failed: {:?}", wrong.len(), CLIENTS * CYCLES_EACH, wrong[0]);

    let log = rig.settled();
    assert_eq!(log.len(), CLIENTS * (CYCLES_EACH + WARM_UP_EACH));
    assert!(log.iter().all(|record| word(record, "close.reason") == "done"));
    assert_eq!(rig.daemon.metric("tidegate_server_active_connections", &[]), 0.0);
    eventually(&format!("the daemon to hold no more than {baseline:?}"), PATIENCE, || {
        let now = rig.daemon.resources();
        (now.descriptors <= baseline.descriptors && now.threads <= baseline.threads).then_some(())
    });
}

/// What the daemon holds with nothing to do. It may see the end of our last look at its metrics a
/// little after we do, so this is the least of several looks.
fn at_rest(rig: &Rig) -> Resources {
    const LOOKS: usize = 20;
    let mut looks = Vec::new();
    eventually("the daemon to be at rest", PATIENCE, || {
        looks.push(rig.daemon.resources());
        let least = looks.iter().min_by_key(|look| (look.descriptors, look.threads)).copied();
        least.filter(|_| looks.len() == LOOKS)
    })
}
