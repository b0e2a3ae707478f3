"""Who is measured, each at its best, and how it is started and ended.

Rules that hold for all: two workers (or as many as there are cores), no access log, no health
checks, servers in turn, one hour of patience for silence. Where a setting is in doubt, the one
that is faster for the peer stands here, with the reason beside it.
"""

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import certificate, prepare

LISTEN = ("127.0.0.1", 7000)
WORKERS = max(2, len(os.sched_getaffinity(0)))
READY_WITHIN_S = 10.0
END_WITHIN_S = 3.0


class Failed(Exception):
    """A proxy that does not start; the message ends with what it said."""


class Refused(Exception):
    """A variant that this build does not know."""


@dataclass(frozen=True)
class Peer:
    name: str
    family: str
    variant: str = ""
    binary: Path = prepare.TIDEGATE  # of ours

    @property
    def is_ours(self):
        return self.family == "tidegate"

    @property
    def is_rival(self):
        return self.family not in ("tidegate", "direct")

    @property
    def ends_tls(self):
        """Variants that differ by pipes are one and the same where TLS is ended, and `direct` ends none."""
        return self.family != "direct" and "splice" not in self.variant


def _all():
    yield Peer("direct", "direct")
    for variant in ("copy", "splice", "splice-1m"):
        yield Peer(f"haproxy-{variant}", "haproxy", variant)
    for variant in ("16k", "64k", "256k"):
        yield Peer(f"nginx-{variant}", "nginx", variant)
    yield Peer("envoy", "envoy")


RIVALS = list(_all())

# The variants that matter, where there is no time for all: pipes and large buffers for bulk,
# no pipes and small buffers elsewhere.
QUICK_BULK = ("direct", "haproxy-splice-1m", "nginx-256k", "envoy")
QUICK_REST = ("direct", "haproxy-copy", "nginx-16k", "envoy")


def tidegate(io):
    return Peer(f"tidegate-{io}", "tidegate", io)


def before(io, binary):
    """Tidegate as it was before a change, from a build that was kept."""
    return Peer(f"before-{io}", "tidegate", io, binary)


def command(peer, folder, servers, ends_tls=False):
    """Writes the peer's configuration for these servers into `folder`; returns what to run."""
    write = {"tidegate": _tidegate, "haproxy": _haproxy, "nginx": _nginx, "envoy": _envoy}[peer.family]
    return write(peer, Path(folder), servers, certificate.make(folder) if ends_tls else None)


def _address(pair):
    return f"{pair[0]}:{pair[1]}"


def _tidegate(peer, folder, servers, tls):
    config = folder / "tidegate.toml"
    names = ", ".join(f'"{_address(server)}"' for server in servers)
    listener_tls = 'tls = "bench"\n' if tls else ""
    table = f'[tls.bench]\ncertificates = ["{tls.both}"]\nmin_version = "1.3"\n' if tls else ""
    config.write_text(
        f'[process]\nworkers = {WORKERS}\nio = "{peer.variant}"\n'
        '[admin]\nsocket = "off"\n'
        '[log]\nlevel = "error"\n'
        '[log.access]\noutput = "off"\n'
        f'[listener.bench]\nbind = ["{_address(LISTEN)}"]\npool = "bench"\n{listener_tls}'
        f'[pool.bench]\nbalance = "round-robin"\nservers = [{names}]\n{table}'
    )
    check = subprocess.run([peer.binary, "check", config], capture_output=True, text=True)
    if check.returncode != 0:
        raise Refused((check.stderr + check.stdout).strip())
    return [peer.binary, "run", "-c", config]


def _haproxy(peer, folder, servers, tls):
    # Pipes always, in both directions: splice-auto, which judges each stream, reached a quarter of the
    # rate in bulk. `shards by-thread` made no difference for short connections. maxconn and
    # maxpipes together stay below 20,000 descriptors.
    splice = "" if peer.variant == "copy" else "  option splice-response\n  option splice-request\n"
    pipes = "  tune.pipesize 1048576\n" if peer.variant == "splice-1m" else ""
    lines = "".join(f"  server s{i} {_address(server)}\n" for i, server in enumerate(servers))
    ciphers = secure = ""
    if tls:
        # Tickets that name a session in its cache took about 8 % less CPU for a full handshake and 4 %
        # less for a resumption than tickets that hold it. Buffers of two records instead of one took
        # 3 to 6 % less for bulk, and larger ones no less than that.
        ciphers = ("  tune.bufsize 32768\n"
                   "  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384\n")  # fmt: skip
        secure = f" ssl crt {tls.both} ssl-min-ver TLSv1.3 no-tls-tickets"
    config = folder / "haproxy.cfg"
    config.write_text(
        f"global\n  nbthread {WORKERS}\n  maxconn 9200\n  maxpipes 600\n{pipes}{ciphers}"
        f"defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n{splice}"
        f"listen bench\n  bind {_address(LISTEN)}{secure}\n  balance roundrobin\n{lines}"
    )
    return [prepare.find("haproxy"), "-db", "-f", config]


def _nginx(peer, folder, servers, tls):
    # multi_accept made no difference for short connections.
    lines = "".join(f"    server {_address(server)};\n" for server in servers)
    ssl = secure = ""
    if tls:
        # Tickets that name a session in its cache, as with HAProxy: about 8 % less CPU for a resumption and
        # the same for a full handshake. Room for 40,000 sessions. Kernel TLS is not asked for:
        # without the kernel's module, which is seldom loaded, the option did nothing.
        ssl = " ssl"
        secure = (f"    ssl_certificate {tls.chain};\n    ssl_certificate_key {tls.key};\n"
                  "    ssl_protocols TLSv1.3;\n    ssl_session_tickets off;\n"
                  "    ssl_session_cache shared:bench:10m;\n")  # fmt: skip
    config = folder / "nginx.conf"
    config.write_text(
        f"load_module {prepare.NGINX_STREAM};\n"
        f"daemon off;\nuser root;\nworker_processes {WORKERS};\nworker_rlimit_nofile 20000;\n"
        f"pid {folder}/nginx.pid;\nerror_log stderr crit;\n"
        "events {\n  worker_connections 20000;\n}\n"
        f"stream {{\n  access_log off;\n  upstream bench {{\n{lines}  }}\n"
        f"  server {{\n    listen {_address(LISTEN)}{ssl} reuseport backlog=4096;\n    proxy_pass bench;\n"
        f"    proxy_buffer_size {peer.variant};\n    proxy_connect_timeout 5s;\n"
        f"    proxy_timeout 1h;\n{secure}"
        "  }\n}\n"
    )
    return [prepare.find("nginx"), "-p", folder, "-e", "stderr", "-c", config]


def _envoy(_peer, folder, servers, tls):
    def at(pair):
        return {"socket_address": {"address": pair[0], "port_value": pair[1]}}

    tcp = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    forward = {"@type": tcp, "stat_prefix": "bench", "cluster": "bench"}
    listener = {"name": "bench", "address": at(LISTEN), "enable_reuse_port": True,
                "filter_chains": [{"filters": [{"name": "tcp", "typed_config": forward}]}]}  # fmt: skip
    if tls:
        # Tickets that hold the session are its default, with keys of its own that all workers share.
        context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
        own = {"certificate_chain": {"filename": str(tls.chain)}, "private_key": {"filename": str(tls.key)}}
        only = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
        secure = {"@type": context, "common_tls_context": {"tls_params": only, "tls_certificates": [own]}}
        listener["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": secure}
    endpoints = [{"endpoint": {"address": at(server)}} for server in servers]
    many = 1_000_000  # its own limits are 1024 of each
    limits = {"max_connections": many, "max_pending_requests": many, "max_requests": many}
    pool = {"name": "bench", "type": "STATIC", "lb_policy": "ROUND_ROBIN", "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [limits]},
            "load_assignment": {"cluster_name": "bench", "endpoints": [{"lb_endpoints": endpoints}]}}  # fmt: skip
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [pool]}}))
    return [prepare.envoy(), "-c", config, "--concurrency", str(WORKERS), "--disable-hot-restart", "-l", "error"]


class Running:
    """A process in a session of its own, ended with all its children when the block is left."""

    def __init__(self, line, log):
        self.log = Path(log)
        with self.log.open("wb") as output:
            # Ended by the kernel, should the bench itself be killed.
            line = ["setpriv", "--pdeathsig", "INT", "--", *map(str, line)]
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    @property
    def pid(self):
        return self.process.pid  # setpriv becomes the command: the same process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # all of them stop at once at this
        try:
            self.process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.pid, signal.SIGKILL)  # the group is its own session: nobody else is in it
        except ProcessLookupError:
            pass
        self.process.wait()

    def wait_for(self, address):
        """Returns when `address` accepts connections."""
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(address, 1.0).close()
                return
            except OSError:
                time.sleep(0.01)
        raise Failed(self.log.read_text(errors="replace")[-2000:].strip() or "it said nothing")
