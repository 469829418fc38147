"""Split policies over a real link whose rate follows recorded traces, against the simulator on the same stretches.

    python -m fogline.benchmarks.split_link --data DIR [--traces 12] [--seconds 12] [--json FILE]     (as root, Linux)

Two network namespaces joined by a veth pair; the device's way out is shaped by a token bucket whose rate is set anew
at each row of the trace. In one runs the real tensor service over mTLS, in the other the real client, held to an eighth
of one core by a control group. The network stack's own round trip is that of one machine, well below that of a radio.
Of each trace the stretch on which, by simulation, adapting gains most is run. A rate of zero is 8 kbit/s here, since a
token bucket has no zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from fogline.benchmarks.hardware import describe
from fogline.common import pki
from fogline.common.split import simulate
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.options import Option, enumerate_options
from fogline.common.split.policies.base import make
from fogline.common.split.profile import load
from fogline.common.split.simulate import Setting

SCHEMA = 1
POLICIES = ("local", "best fixed", "neurosurgeon", "dynamic", "joint", "oracle")
OVERHEAD = 1.06  # bytes on the wire ÷ coded bytes
LEAST_BIT_S, MOST_BIT_S = 8e3, 100e6
PERIOD_US = 8000
EDGE, FOG = "10.99.7.1", "10.99.7.2"


def own_niceness() -> None:
    """Where the kernel groups processes by session, the nice value of this one counts only within: lift the group."""
    group = Path("/proc/self/autogroup")
    if group.exists():
        group.write_text(str(os.nice(0)))


def run(*words: str) -> None:
    """A command that must succeed."""
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextmanager
def namespaces(prefix: str) -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a cable."""
    edge, fog = f"{prefix}-edge", f"{prefix}-fog"
    try:
        for name in (edge, fog):
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "veth0", "netns", edge, "type", "veth", "peer", "name", "veth0", "netns", fog)
        for name, address in ((edge, EDGE), (fog, FOG)):
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "veth0")
            run("ip", "-n", name, "link", "set", "veth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("tc", "-n", edge, "qdisc", "add", "dev", "veth0", "root", *bucket(MOST_BIT_S))
        yield edge, fog
    finally:
        for name in (edge, fog):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def bucket(rate: float) -> list[str]:
    """A token bucket of a rate in bit/s: bursts of 1 ms or one packet, a queue that no frame here overflows."""
    rate = min(max(rate, LEAST_BIT_S), MOST_BIT_S)
    return ["tbf", "rate", f"{rate:.0f}bit", "burst", f"{max(1600, int(rate / 8 * 0.001))}", "limit", "4000000"]


@contextmanager
def eighth(name: str) -> Iterator[Path]:
    """A control group that gets an eighth of one core, in slices so short that no request notices them."""
    group = Path("/sys/fs/cgroup/cpu") / name
    group.mkdir()
    try:
        # The nice value of a process counts only within its group; this weight is for what the quota allows.
        (group / "cpu.shares").write_text("262144")
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US // 8))
        yield group
    finally:
        for _ in range(100):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


class Shaper(threading.Thread):
    """Sets the rate as a trace says, and nudges the bucket, which looks at a new rate only when a packet comes."""

    def __init__(self, namespace: str, link: Bandwidth) -> None:
        super().__init__(daemon=True)
        self._namespace, self._link = namespace, link
        self.late_s = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        """Follow the trace from its start."""
        inside = ["nsenter", f"--net=/run/netns/{self._namespace}"]
        with (
            subprocess.Popen([*inside, "tc", "-batch", "-"], stdin=subprocess.PIPE, text=True) as tc,
            subprocess.Popen([*inside, sys.executable, "-c", _NUDGER, FOG], stdin=subprocess.PIPE, text=True) as nudger,
        ):
            start, rounds, index = time.monotonic(), 0, 0
            while not self._over.is_set():
                due = rounds * self._link.duration_s + self._link.times[index]
                self._over.wait(max(0.0, start + due - time.monotonic()))
                self.late_s = max(self.late_s, time.monotonic() - start - due)
                _set(tc, nudger, 8 * self._link.rates[index])
                index += 1
                if index == len(self._link.rates):
                    rounds, index = rounds + 1, 0
            _set(tc, nudger, MOST_BIT_S)
            for process in (tc, nudger):
                assert process.stdin is not None
                process.stdin.close()

    def finish(self) -> None:
        """Back to the full rate."""
        self._over.set()
        self.join()


def _set(tc: subprocess.Popen[str], nudger: subprocess.Popen[str], rate: float) -> None:
    for process, line in ((tc, f"qdisc change dev veth0 root {' '.join(bucket(rate))}"), (nudger, "")):
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()


_NUDGER = """import socket, sys
cable = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in sys.stdin:
    cable.sendto(b"x", (sys.argv[1], 9))
"""


class Child:
    """A process in a namespace and perhaps a control group, spoken to in lines of JSON."""

    def __init__(self, stack: ExitStack, namespace: str, group: Path | None, *words: str) -> None:
        inside = ["nsenter", f"--net=/run/netns/{namespace}", *words]
        if group is not None:
            inside = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *inside]
        self._process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(self._end)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def line(self) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}")
        return text

    def tell(self, what: dict[str, Any]) -> None:
        """Send it one object."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()


def stretch(whole: Bandwidth, stem: str, start: int, seconds: float) -> Bandwidth:
    """`seconds` of a trace, with rates that the token bucket can keep."""
    rows = [(t, r) for t, r in zip(whole.times, whole.rates, strict=False) if t < start + seconds]
    first = max((i for i, (t, _) in enumerate(rows) if t <= start), default=0)
    times = [max(0.0, t - start) for t, _ in rows[first:]]
    rates = [min(max(8 * r, LEAST_BIT_S), MOST_BIT_S) for _, r in rows[first:]]
    return Bandwidth(times, rates, f"{stem} from {start} s", last_s=seconds - times[-1])


def stretches(options: list[Option], paths: list[Path], setting: Setting, count: int) -> list[tuple[Bandwidth, str]]:
    """`count` traces, groups in turn, and of each the stretch on which the oracle gains most over the best fixed."""
    by_group: dict[str, list[tuple[float, Bandwidth, str]]] = {}
    for path in paths:
        whole, found = Bandwidth.read(path), []
        starts = range(0, max(1, int(min(whole.duration_s, 600) - setting.duration_s)), int(setting.duration_s))
        for start in starts:
            link = stretch(whole, path.stem, start, setting.duration_s)
            best = simulate.best_fixed(options, link, setting)[1].mean_s
            found.append((1 - simulate.oracle(options, link, setting).mean_s / best, link, path.parent.name))
        by_group.setdefault(path.parent.name, []).append(max(found, key=lambda one: one[0]))
    for some in by_group.values():
        some.sort(key=lambda one: -one[0])
    chosen: list[tuple[Bandwidth, str]] = []
    while len(chosen) < count and any(by_group.values()):
        for group in sorted(by_group):
            if by_group[group] and len(chosen) < count:
                _, link, name = by_group[group].pop(0)
                chosen.append((link, name))
    return chosen


def summarise(requests: list[Any]) -> dict[str, Any]:
    """Of one run."""
    latencies = sorted(one["latency_s"] for one in requests)
    return {
        "requests": len(latencies),
        "mean_s": statistics.fmean(latencies),
        "p99_s": latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
        "fallbacks": sum(one["fell_back"] for one in requests),
    }


def task(policy: str, best: Option, link: Bandwidth, options: argparse.Namespace) -> dict[str, Any]:
    """What the client is told to run."""
    found: dict[str, Any] = {"policy": policy, "seconds": options.seconds}
    if policy == "best fixed":
        found["policy"] = "fixed"
        found["params"] = {
            "cut": best.cuts[0] if best.cuts else "local",
            "codec": best.codecs[0] if best.cuts else None,
        }
    elif policy == "joint":
        found["params"] = {"accuracy_budget": options.accuracy_budget}
    elif policy == "oracle":
        found["params"] = {
            "times_s": link.times[:-1], "rates_bit_s": [8 * rate for rate in link.rates],
            "last_s": link.times[-1] - link.times[-2], "overhead": OVERHEAD,
        }  # fmt: skip
    return found


def real_run(client: Child, edge: str, link: Bandwidth, what: dict[str, Any]) -> dict[str, Any]:
    """One policy over one stretch."""
    client.tell(what)
    client.line()
    shaper = Shaper(edge, link)
    shaper.start()
    told: dict[str, Any] = json.loads(client.line())
    shaper.finish()
    return told | {"rate_late_s": shaper.late_s}


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Floats to five digits, so that the file stays small."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in record.items()}


def main() -> None:
    """Parse the command line, measure, simulate, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds traces/ and kodak/")
    parser.add_argument("--model", default="fogline.benchmarks.split_models:mobilenet_v2")
    parser.add_argument("--traces", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--only", default="", help="stretches to run of those chosen, by number: 0,3,7")
    parser.add_argument("--repeats", type=int, default=1, help="of each policy on each stretch, in turns")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--accuracy-budget", type=float, default=1.0, help="1: of untrained weights it says nothing")
    parser.add_argument("--codecs", default="raw,fp16,int8,int8+zstd")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("namespaces and control groups need root")
    own_niceness()
    prefix = "fgl" + secrets.token_hex(2)
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory()))
        edge, fog = stack.enter_context(namespaces(prefix))
        group = stack.enter_context(eighth(prefix))
        result = measure(options, stack, work, edge, fog, group)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("| stretch | " + " | ".join(f"{name}: real, simulated ms" for name in result["policies"]) + " |")
    for one in result["stretches"]:
        cells = [
            f"{1e3 * p['real']['mean_s']:.0f}, {1e3 * p['simulated']['mean_s']:.0f}" for p in one["policies"].values()
        ]
        print(f"| {one['trace']} | " + " | ".join(cells) + " |")


def measure(
    options: argparse.Namespace, stack: ExitStack, work: Path, edge: str, fog: str, group: Path
) -> dict[str, Any]:
    """Profiles on both ends, then every policy over every stretch, in a new order for each."""
    authority = pki.Authority.create()
    authority.save(work)
    for name, role, hosts in (("edge", "edge", ()), ("fog", "fog", (FOG,))):
        made = authority.enrol(name, role, hosts)  # type: ignore[arg-type]
        pki.save_enrolment(made, authority.certificate_pem, name, work)
    images = options.data / "kodak"
    words = ["-m", "fogline", "split", "profile", "--model", options.model, "--images", str(images)]
    words += ["--codecs", options.codecs, "--rounds", "7"]
    print("measuring the host", file=sys.stderr)
    run(sys.executable, *words, "-o", str(work / "host.json"))
    print("measuring the device", file=sys.stderr)
    held = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", sys.executable, *words, "--samples", "1"]
    run(*held, "-o", str(work / "device.json"))
    device, host = load(work / "device.json"), load(work / "host.json")
    choices = enumerate_options([device, host], 1)
    drops = {(o.cuts, o.codecs): o.accuracy_drop for o in enumerate_options([host, host], 1)}
    within = [o for o in choices if drops[o.cuts, o.codecs] <= options.accuracy_budget]
    names = json.dumps([cut.name for cut in host.cuts])
    common = ["--tls", str(work), "--model", options.model, "--cuts", names]
    server = Child(
        stack, fog, None, sys.executable, "-m", "fogline.benchmarks.split_link_host", "--listen", f"{FOG}:0", *common
    )
    port = server.line().split()[1]
    client = Child(
        stack, edge, group, sys.executable, "-m", "fogline.benchmarks.split_link_client", "--connect", f"{FOG}:{port}",
        *common, "--images", str(images), "--host-profile", str(work / "host.json"),
        "--device-profile", str(work / "device.json"),
    )  # fmt: skip
    rtt_s = json.loads(client.line())["rtt_s"]
    print(f"round trip {1e3 * rtt_s:.1f} ms", file=sys.stderr)
    setting = Setting(rtt_s=rtt_s, duration_s=options.seconds, overhead=OVERHEAD)
    paths = sorted((options.data / "traces").rglob("*.csv"))
    found = []
    names_of_policies = options.policies.split(",")
    for index, (link, kind) in enumerate(stretches(within, paths, setting, options.traces)):
        if options.only and str(index) not in options.only.split(","):
            continue
        best, best_run = simulate.best_fixed(within, link, setting)
        ideal = simulate.oracle(within, link, setting)
        row: dict[str, Any] = {
            "trace": link.name, "group": kind, "best_fixed": best.name,
            "oracle_simulated_s": ideal.mean_s, "policies": {}
        }  # fmt: skip
        shift = index % len(names_of_policies)
        order = names_of_policies[shift:] + names_of_policies[:shift]
        if not best.cuts and "local" in order:
            order.remove("best fixed")
        runs: dict[str, list[dict[str, Any]]] = {policy: [] for policy in order}
        for turn in range(options.repeats):
            for policy in reversed(order) if turn % 2 else order:
                told = real_run(client, edge, link, task(policy, best, link, options))
                runs[policy].append(told)
                print(
                    f"{link.name}: {policy}: real {1e3 * summarise(told['requests'])['mean_s']:.0f} ms",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        for policy, some in runs.items():
            requests = [one for told in some for one in told["requests"]]
            real = summarise(requests)
            real["mean_of_each_s"] = [summarise(told["requests"])["mean_s"] for told in some]
            for key in ("decision_s", "decision_cpu_s"):
                real[key] = statistics.fmean(one[key] for one in requests)
            for key in ("rtt_s", "factors", "probe_bytes", "rate_late_s"):
                real[key] = [told[key] for told in some]
            pretended = {"best fixed": best_run, "oracle": ideal}.get(policy) or simulate.planned(
                make(policy, choices, {"accuracy_budget": options.accuracy_budget} if policy == "joint" else {}),
                link, setting,
            )  # fmt: skip
            row["policies"][policy] = {
                "real": real,
                "simulated": summarise([dataclasses.asdict(one) for one in pretended.requests]),
                "requests": [[rounded(one) for one in told["requests"]] for told in some],
            }
        if "best fixed" not in row["policies"] and "best fixed" in names_of_policies:
            row["policies"]["best fixed"] = row["policies"]["local"]
        row["policies"] = {name: row["policies"][name] for name in names_of_policies}
        found.append(row)
        if options.json:
            options.json.write_text(json.dumps({"unfinished": found}) + "\n")
    return {
        "schema": SCHEMA, "benchmark": "split_link", "hardware": describe(), "model": options.model,
        "policies": names_of_policies, "rtt_s": rtt_s, "seconds": options.seconds, "codecs": options.codecs,
        "accuracy_budget": options.accuracy_budget, "stretches": found,
        "profiles": {
            name: msgspec.to_builtins(one, str_keys=True) for name, one in (("device", device), ("host", host))
        },
        "device": {"whole_s": device.whole_s[1], "hardware": device.hardware}, "host": {"whole_s": host.whole_s[1]},
    }  # fmt: skip


if __name__ == "__main__":
    main()
