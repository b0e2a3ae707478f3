"""What is put on a proxy: each scenario by name, and how its result is told.

A scenario is data: the arguments of the load generator, the unit, and what counts as good.
"""

from dataclasses import dataclass

GIB = float(1 << 30)


@dataclass(frozen=True)
class Scenario:
    name: str
    kind: str  # as the load generator calls it
    title: str
    arguments: tuple[str, ...] = ()
    # One unit of the table in units of the load generator, and the table's words for it.
    unit: float = 1.0
    rate_word: str = "per s"
    cpu_word: str = "µs"
    cpu_scale: float = 1e6  # from CPU seconds per unit to the table's figure

    @property
    def is_bulk(self):
        return self.kind in ("bulk", "tls-bulk")

    @property
    def ends_tls(self):
        """The proxy ends TLS; the servers behind it are the plain ones of the other scenarios."""
        return self.kind.startswith("tls-")

    @property
    def is_resuming(self):
        return self.kind == "tls-resumed"

    @property
    def is_open_loop(self):
        """The rate is given, so the latency is what tells."""
        return self.kind in ("pings", "connects")

    @property
    def is_idle(self):
        return self.kind == "idle"


def _bulk(connections):
    plural = "connection" if connections == 1 else "connections"
    return Scenario(
        f"bulk-{connections}", "bulk", f"bulk, server to client, {connections} {plural}",
        ("--connections", str(connections)), GIB, "GiB/s", "s/GiB", 1.0,
    )  # fmt: skip


ALL = [
    _bulk(1),
    _bulk(16),
    _bulk(128),
    Scenario("requests-64", "requests", "64 connections, 64 B request and reply",
             ("--connections", "64", "--bytes", "64")),
    Scenario("requests-1k", "requests", "64 connections, 1 KiB request and reply",
             ("--connections", "64", "--bytes", "1024")),
    Scenario("short", "short", "connect, 64 B, 64 B, close by the client; 64 at a time",
             ("--connections", "64", "--bytes", "64")),
    Scenario("pings", "pings", "20,000 pings/s, open loop, 64 connections",
             ("--connections", "64", "--bytes", "64", "--rate", "20000")),
    Scenario("connects", "connects", "2,000 new connections/s, open loop",
             ("--bytes", "64", "--rate", "2000")),
    Scenario("tls-full", "tls-full", "connect, TLS 1.3 full handshake, 64 B, 64 B, close; 64 at a time",
             ("--connections", "64", "--bytes", "64")),
    Scenario("tls-resumed", "tls-resumed", "connect, TLS 1.3 resumed, 64 B, 64 B, close; 64 at a time",
             ("--connections", "64", "--bytes", "64")),
    Scenario("tls-bulk", "tls-bulk", "bulk over TLS (AES-128-GCM), server to client, 16 connections",
             ("--connections", "16"), GIB, "GiB/s", "s/GiB", 1.0),
    Scenario("idle", "idle", "9,000 idle connections, private memory of the proxy",
             ("--connections", "9000", "--bytes", "64")),
]  # fmt: skip

QUICK = ["bulk-16", "requests-64", "short", "pings", "idle"]


def chosen(names):
    """The scenarios of these names, in the order of ALL; `bulk` means every `bulk-*`.

    Raises ValueError with the names there are.
    """
    known = {scenario.name for scenario in ALL} | {scenario.kind for scenario in ALL}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no scenario {', '.join(unknown)}; there are {', '.join(s.name for s in ALL)}")
    return [scenario for scenario in ALL if scenario.name in names or scenario.kind in names]
