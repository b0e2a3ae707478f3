"""From windows to Markdown: medians, and ratios within one round.

Figures of different rounds are never divided by each other: the speed of a shared machine drifts
by a third within minutes. What is compared with the best peer is compared round by round, and
the median of those ratios is shown with the smallest, the largest, and their number.
"""

from dataclasses import dataclass
from statistics import median
from typing import Callable


@dataclass(frozen=True)
class Measure:
    word: str
    of: Callable  # window -> number, or None where there is none
    digits: int
    more_is_better: bool = False
    is_compared: bool = False
    has_direct: bool = True


def measures(scenario):
    """The columns of a scenario, in order."""
    if scenario.is_idle:
        def kib(window):
            return (window["private_kib_after"] - window["private_kib_before"]) / max(1, window["units"])

        return [Measure("KiB per connection", kib, 2, is_compared=True, has_direct=False)]

    def rate(window):
        return window["units"] / scenario.unit / window["seconds"]

    def cpu(field):
        def per_unit(window):
            return window[field] / max(1e-9, window["units"] / scenario.unit) * scenario.cpu_scale

        return per_unit

    fine = 3 if scenario.is_bulk else 1
    is_open = scenario.is_open_loop
    columns = [
        Measure(scenario.rate_word, rate, 2 if scenario.is_bulk else 0, True, not is_open),
        Measure(f"proxy CPU {scenario.cpu_word}", cpu("proxy_cpu_s"), fine, False, True, has_direct=False),
        Measure(f"machine CPU {scenario.cpu_word}", cpu("machine_cpu_s"), fine),
    ]
    if scenario.is_resuming:
        def share(window):
            return 100 * window["resumed"] / max(1, window["units"])

        columns.append(Measure("resumed %", share, 1))
    if not scenario.is_bulk:
        columns += [
            Measure(f"{word} µs", lambda window, field=field: window.get(field), 0, is_compared=is_open)
            for word, field in (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"))
        ]
    return columns


def middle(measure, windows):
    """The median of the clean windows, or of all where none is clean."""
    windows = list(windows)
    clean = [window for window in windows if not window["polluted"]]
    values = [value for value in map(measure.of, clean or windows) if value is not None]
    return median(values) if values else None


def is_dirty(windows):
    """Others were busy in every window of a peer."""
    return all(window["polluted"] for window in windows.values())


def best_peer(measure, peers, rounds):
    """The rival whose median is best, among those with a clean window if there are any; or None."""
    rivals = [peer for peer in peers if peer.is_rival]
    rivals = [peer for peer in rivals if not is_dirty(rounds[peer.name])] or rivals
    found = {peer.name: middle(measure, rounds[peer.name].values()) for peer in rivals}
    found = {name: value for name, value in found.items() if value is not None}
    if not found:
        return None
    return (max if measure.more_is_better else min)(found, key=found.get)


def ratio(measure, rounds, name, best):
    """`median [min–max, number]` of the ratios of the rounds in which both have a clean window.

    Where there is no such round, of all; the table's last column then tells.
    """
    shared = rounds[name].keys() & rounds[best].keys()
    clean = [n for n in shared if not (rounds[name][n]["polluted"] or rounds[best][n]["polluted"])]
    pairs = [(measure.of(rounds[name][n]), measure.of(rounds[best][n])) for n in clean or shared]
    ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    if not ratios:
        return "–"
    return f"{median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}, {len(ratios)}]"


def errors_of(windows):
    """`0`, or in bold how many of which kind, over all windows."""
    total = {}
    for window in windows:
        for kind, count in window["errors"].items():
            total[kind] = total.get(kind, 0) + count
    named = [f"{kind} {count}" for kind, count in total.items() if count]
    return f"**{', '.join(named)}**" if named else "0"


def render(scenario, peers, rounds):
    """The scenario's table. `rounds` is {peer name: {round number: window}}."""
    peers = [peer for peer in peers if rounds.get(peer.name)]
    if not peers:
        return f"### {scenario.name}: no window\n"
    columns = measures(scenario)
    compared = [(measure, best_peer(measure, peers, rounds)) for measure in columns if measure.is_compared]
    compared = [(measure, best) for measure, best in compared if best]

    head = [scenario.name, *(measure.word for measure in columns)]
    head += [f"{_short(measure.word)} ÷ best peer" for measure, _ in compared]
    head += ["errors", "windows (repeats, polluted)"]
    lines = [f"### {scenario.title}", "", _row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for peer in peers:
        windows = list(rounds[peer.name].values())
        cells = [f"{peer.name} (polluted)" if is_dirty(rounds[peer.name]) else peer.name]
        for measure in columns:
            value = middle(measure, windows)
            is_shown = value is not None and (peer.name != "direct" or measure.has_direct)
            cells.append(f"{value:,.{measure.digits}f}" if is_shown else "–")
        for measure, best in compared:
            is_shown = peer.name != "direct" or measure.has_direct
            cells.append(ratio(measure, rounds, peer.name, best) if is_shown else "–")
        repeated, polluted = sum(w["repeated"] for w in windows), sum(w["polluted"] for w in windows)
        cells += [errors_of(windows), f"{len(windows)} ({repeated}, {polluted})"]
        lines.append(_row(cells))
    if compared:
        lines += ["", "Best peer: " + "; ".join(f"{best} by {_short(m.word)}" for m, best in compared) + "."]
    lines += [f"\n**Doubt this table:** {doubt}." for doubt in doubts(scenario, columns, peers, rounds)]
    return "\n".join(lines) + "\n"


def doubts(scenario, columns, peers, rounds):
    """What a sceptic would say of these figures."""
    direct = rounds.get("direct", {})
    if not is_dirty(direct) and not scenario.is_idle:
        word = "p50 µs" if scenario.is_open_loop else scenario.rate_word
        measure = next(measure for measure in columns if measure.word == word)
        own = middle(measure, direct.values())
        for peer in peers:
            value = middle(measure, rounds[peer.name].values())
            is_better = value > own if measure.more_is_better else value < own
            if peer.name != "direct" and is_better:
                yield f"{peer.name} is better than no proxy at all"
    dirty = [peer.name for peer in peers if is_dirty(rounds[peer.name])]
    if dirty:
        yield f"other processes were busy in every window of {', '.join(dirty)}"


def _short(word):
    return {"per s": "rate", "GiB/s": "rate", "KiB per connection": "memory"}.get(
        word, "CPU" if word.startswith("proxy CPU") else word.removesuffix(" µs")
    )


def _row(cells):
    return "| " + " | ".join(cells) + " |"
