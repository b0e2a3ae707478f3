"""One window: a fresh network namespace, a fresh server, a fresh proxy, a burst of load.

Nothing of a window reaches the next: no socket in TIME_WAIT, no used port, no grown heap. The
namespace has loopback only, and reno: the machine's own congestion control may pace
(bbr does), and then bulk measures the pacing. It is gone when its last process is.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import peers, prepare

SERVER_ADDRESS = "127.0.0.1"
FIRST_ECHO, FIRST_BULK, PORTS = 9000, 9100, 16

# A window in which others took more of one core than this is taken again.
POLLUTED = 0.12
AGAIN_MAX = 3
# Below this share the window measured full handshakes as well, and counts as a fault.
RESUMED_MIN = 0.95
IDLE_LIMIT_S = 120
CLONE_NEWNET = 0x40000000

SYSCTLS = {
    "ipv4/tcp_congestion_control": "reno",
    # Above all ports that anybody listens on here, so that none is taken by a connection.
    "ipv4/ip_local_port_range": "10240 65535",
    # Room for every TIME_WAIT of a window. When there is none, the kernel forgets the connection at
    # once and answers what still comes with a reset, which would look like a fault of the proxy.
    "ipv4/tcp_max_tw_buckets": "2000000",
}


def fresh_namespace():
    """Moves this process, and with it all that it starts from now on, into a new namespace."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise prepare.Missing(f"no new network namespace: {os.strerror(code)}")
    subprocess.run([prepare.find("ip"), "link", "set", "lo", "up"], check=True)
    for name, value in SYSCTLS.items():
        try:
            Path("/proc/sys/net", name).write_text(value)
        except OSError as error:
            # Without reno the comparison is still fair, but says less; the rest must hold.
            if "congestion" not in name:
                raise
            print(f"bench: {name} stays as it is: {error}", file=sys.stderr)


def servers(scenario):
    first = FIRST_BULK if scenario.is_bulk else FIRST_ECHO
    return [(SERVER_ADDRESS, first + index) for index in range(PORTS)]


def serve(folder):
    threads = str(min(2, peers.WORKERS))
    line = [prepare.LOAD, "serve", "--address", SERVER_ADDRESS, "--first-echo", FIRST_ECHO,
            "--first-bulk", FIRST_BULK, "--ports", PORTS, "--threads", threads]  # fmt: skip
    return peers.Running(line, Path(folder) / "server.log")


def load(scenario, targets, *more):
    """Runs the load generator to its end; returns what it reports."""
    addresses = ",".join(f"{address}:{port}" for address, port in targets)
    line = [prepare.LOAD, "run", scenario.kind, "--target", addresses, *scenario.arguments, *more]
    run = subprocess.run([str(part) for part in line], capture_output=True, text=True,
                         timeout=IDLE_LIMIT_S, start_new_session=True)  # fmt: skip
    if run.returncode != 0:
        raise peers.Failed(f"the load generator failed: {run.stderr.strip()}")
    return json.loads(run.stdout)


def take(scenario, peer, seconds, warm_up, seed):
    """One window as it comes; see the load generator for the fields."""
    fresh_namespace()
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder, serve(folder) as server:
        targets = servers(scenario)
        server.wait_for(targets[-1])
        shape = ("--window", seconds, "--warm-up", warm_up, "--seed", seed, "--server", server.pid)
        if peer.family == "direct":
            return load(scenario, targets, *shape)
        line = peers.command(peer, folder, targets, scenario.ends_tls)
        with peers.Running(line, Path(folder) / "proxy.log") as proxy:
            proxy.wait_for(peers.LISTEN)
            result = load(scenario, [peers.LISTEN], *shape, "--proxy", proxy.pid)
            if proxy.process.poll() is not None:
                raise peers.Failed(f"it ended under load: {proxy.log.read_text(errors='replace')[-2000:]}")
            if scenario.is_resuming and result["resumed"] < RESUMED_MIN * result["units"]:
                result["errors"]["not resumed"] = result["units"] - result["resumed"]
            return result


def is_polluted(scenario, result):
    if scenario.is_idle:
        return False  # memory is memory, however busy the machine
    taken = result["others_cpu_s"] + result["stolen_s"]
    return taken > POLLUTED * result["seconds"]


def take_clean(scenario, peer, seconds, warm_up, seed, again_max, keep):
    """A window without pollution, taken again at most `again_max` times; else the least polluted.

    `keep` is called with every window. The result says how often it was `repeated`.
    """
    best = None
    for repeated in range(again_max + 1):
        result = take(scenario, peer, seconds, warm_up, seed)
        result |= {"polluted": is_polluted(scenario, result), "repeated": repeated}
        keep(result)
        share = (result["others_cpu_s"] + result["stolen_s"]) / result["seconds"]
        if best is None or share < best[0]:
            best = (share, result)
        if not result["polluted"]:
            break
    return best[1] | {"repeated": repeated}
