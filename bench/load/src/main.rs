//! `tidegate-load`: the load of one window, and the server behind the proxy.
//!
//! `serve` is the server; `run` puts one scenario on the targets for a warm-up and a window and
//! prints one line of JSON: what was done, what went wrong, and what CPU it took of the proxy,
//! of the load itself, of the server and of everybody else. It judges nothing: bench/run does.

mod arrivals; // when the next unit of an open loop is due
mod lines; // scenarios on connections that stay
mod meter; // units, errors, latencies, and the window
mod sealed; // scenarios over TLS
mod serve; // the server side
mod sys; // all unsafe code and raw system calls
mod tls; // TLS as a client, without the socket
mod visits; // scenarios in which every unit is a connection
mod watch; // what processes used, from /proc

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use hdrhistogram::Histogram;

use meter::{FAULTS, Meter, Run};
use watch::{Used, Watched};

/// Load and servers for Tidegate's bench.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Echoes on some ports and streams on others, until it is ended
    Serve(ServeArgs),
    /// Puts load on the targets and prints one line of JSON; of an option given twice, the last holds
    #[command(args_override_self = true)]
    Run(RunArgs),
}

#[derive(Args)]
struct ServeArgs {
    #[arg(long)]
    address: Ipv4Addr,
    #[arg(long)]
    first_echo: u16,
    #[arg(long)]
    first_bulk: u16,
    /// Ports of each kind
    #[arg(long)]
    ports: u16,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Scenario {
    /// Server to client as fast as it comes; the unit is a byte
    Bulk,
    /// One message and its answer at a time on each connection
    Requests,
    /// Connect, ask, be answered, close
    Short,
    /// Connections that say one thing and then nothing; tells the proxy's memory
    Idle,
    /// Messages at a fixed rate, open loop
    Pings,
    /// New connections at a fixed rate, open loop
    Connects,
    /// Short, over TLS with a full handshake each; the server behind the proxy is the same
    TlsFull,
    /// Short, over TLS with a ticket of an earlier connection
    TlsResumed,
    /// Bulk over TLS
    TlsBulk,
}

#[derive(Args)]
struct RunArgs {
    #[arg(value_enum)]
    scenario: Scenario,
    /// Where to connect to; several are taken in turn
    #[arg(long, required = true, value_delimiter = ',')]
    target: Vec<SocketAddrV4>,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Size of a message and of its answer
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Units per second of an open loop
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Seconds
    #[arg(long, default_value_t = 0.4)]
    warm_up: f64,
    /// Seconds
    #[arg(long, default_value_t = 2.0)]
    window: f64,
    /// No window: ends when so many units are done
    #[arg(long)]
    count: Option<u64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The proxy's process; its descendants belong to it
    #[arg(long)]
    proxy: Option<u32>,
    /// The server's process
    #[arg(long)]
    server: Vec<u32>,
}

/// A run that counts may take so long, also under a tracer.
const COUNT_LIMIT: Duration = Duration::from_secs(120);

/// Between the last message on an idle connection and the look at the proxy's memory.
const SETTLE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Run(args) => run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &ServeArgs) -> io::Result<()> {
    sys::end_with_parent()?;
    sys::raise_open_files()?;
    let ports = serve::Ports { first_echo: args.first_echo, first_bulk: args.first_bulk, count: args.ports };
    serve::run(args.address, &ports, args.threads.max(1))
}

fn run(args: RunArgs) -> io::Result<()> {
    sys::end_with_parent()?;
    sys::raise_open_files()?;
    let watched = Watched { proxy: args.proxy, servers: args.server.clone(), started: Instant::now() };
    if args.scenario == Scenario::Idle {
        return idle(&args, &watched);
    }
    let threads = args.threads.clamp(1, args.connections.max(1));
    let run = Run::new(args.target.clone(), threads, args.seed);
    thread::scope(|scope| {
        let (args, run) = (&args, &run);
        let load: Vec<_> = (0..threads).map(|index| scope.spawn(move || drive(args, run, index))).collect();
        let window = watch_window(args, run, &watched);
        run.stop();
        let mut latencies = Histogram::<u64>::new(3).map_err(io::Error::other)?;
        for thread in load {
            let of_thread =
                thread.join().map_err(|_| io::Error::other("a thread of the load panicked"))??;
            latencies.add(of_thread).map_err(io::Error::other)?;
        }
        report(&window, run, &latencies);
        Ok(())
    })
}

/// One thread of the load, from connecting to the end of the run.
fn drive(args: &RunArgs, run: &Run, thread: usize) -> io::Result<Histogram<u64>> {
    let mut meter = Meter::new(run, thread);
    let meter_mut = &mut meter;
    match args.scenario {
        Scenario::Bulk => lines::bulk(meter_mut, args.connections)?,
        Scenario::Requests => lines::ping_pong(meter_mut, args.connections, args.bytes)?,
        Scenario::Pings => lines::pings(meter_mut, args.connections, args.bytes, args.rate)?,
        Scenario::Short => visits::closed_loop(meter_mut, args.connections, args.bytes)?,
        Scenario::Connects => visits::open_loop(meter_mut, args.rate, args.bytes)?,
        Scenario::TlsFull => sealed::handshakes(meter_mut, false, args.connections, args.bytes)?,
        Scenario::TlsResumed => sealed::handshakes(meter_mut, true, args.connections, args.bytes)?,
        Scenario::TlsBulk => sealed::bulk(meter_mut, args.connections)?,
        Scenario::Idle => {} // has no window, and so no thread: see `idle`
    }
    Ok(meter.latencies)
}

/// What was done and used between the two edges of the window.
struct Window {
    seconds: f64,
    units: u64,
    /// Of the units, those that were resumed TLS sessions.
    resumed: u64,
    used: Used,
}

fn watch_window(args: &RunArgs, run: &Run, watched: &Watched) -> Window {
    if args.count.is_none() {
        thread::sleep(Duration::from_secs_f64(args.warm_up));
    }
    run.open_window();
    let (began, units, resumed) = (Instant::now(), run.units(), run.resumed());
    let used = watched.used();
    match args.count {
        None => thread::sleep(Duration::from_secs_f64(args.window)),
        Some(count) => {
            while run.units() < count && began.elapsed() < COUNT_LIMIT {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    // In the same order as above, so that both edges are equally late.
    run.close_window();
    let seconds = began.elapsed().as_secs_f64();
    let units = if args.count.is_some() { run.units() } else { run.units() - units };
    let resumed = run.resumed() - resumed;
    Window { seconds, units, resumed, used: watched.used().since(used) }
}

/// The proxy's memory before and after many connections were opened and have fallen silent.
fn idle(args: &RunArgs, watched: &Watched) -> io::Result<()> {
    let run = Run::new(args.target.clone(), 1, args.seed);
    let meter = Meter::new(&run, 0);
    let (began, used, before_kib) = (Instant::now(), watched.used(), watched.proxy_private_kib());
    let held = lines::idle(&meter, args.connections, args.bytes);
    thread::sleep(SETTLE);
    let after_kib = watched.proxy_private_kib();
    let window = Window {
        seconds: began.elapsed().as_secs_f64(),
        units: held.len() as u64,
        resumed: 0,
        used: watched.used().since(used),
    };
    drop(held);
    let mut line = body(&window, &run);
    let _ = write!(line, ",\"private_kib_before\":{before_kib},\"private_kib_after\":{after_kib}");
    println!("{{{line}}}");
    Ok(())
}

fn report(window: &Window, run: &Run, latencies: &Histogram<u64>) {
    let mut line = body(window, run);
    if !latencies.is_empty() {
        let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let _ = write!(
            line,
            ",\"latencies\":{},\"p50_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1}",
            latencies.len(),
            us(0.5),
            us(0.99),
            us(0.999)
        );
    }
    println!("{{{line}}}");
}

/// The fields that every scenario has; names and numbers only, so nothing needs escaping.
fn body(window: &Window, run: &Run) -> String {
    let Window { seconds, units, resumed, used } = window;
    let mut line = format!("\"seconds\":{seconds:.6},\"units\":{units},\"resumed\":{resumed}");
    for (name, value) in [
        ("proxy_cpu_s", used.proxy),
        ("load_cpu_s", used.load),
        ("server_cpu_s", used.server),
        ("others_cpu_s", used.others),
        ("machine_cpu_s", used.machine),
        ("stolen_s", used.stolen),
    ] {
        let _ = write!(line, ",\"{name}\":{value:.4}");
    }
    let faults: Vec<String> =
        FAULTS.iter().zip(run.faults()).map(|(name, count)| format!("\"{name}\":{count}")).collect();
    let _ = write!(line, ",\"errors\":{{{}}}", faults.join(","));
    line
}
