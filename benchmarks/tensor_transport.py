"""Moving a tensor between two processes: the tensor plane against a raw socket, bare gRPC, Flower and hivemind.

    python -m fogline.benchmarks.tensor_transport [--size 64] [--repeats 9] [--rounds 400]
        [--flower PYTHON] [--hivemind PYTHON] [--quick] [--json FILE]

A process for each side on loopback, mutual TLS wherever there is gRPC. All ways are connected and warmed up by small
tensors first, then take turns, in alternating order, so that a busy machine hurts all alike; medians are reported, and
ratios are medians of the ratios within a turn. CPU seconds are those of both processes, and of daemons that
they start. Extra memory is the receiver's
peak (VmHWM) above what was resident before its first tensor of this size: what is kept for the next one counts. Stall
is the worst delay of a timer on the receiver's event loop, or on one beside its threads where it has none.
`ours_no_crc` is the tensor plane without its checksum, which only this benchmark can take out.

PYTHON is an interpreter that has the peer installed; a peer without one is left out. See `tensor_peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fogline.benchmarks.hardware import describe
from fogline.benchmarks.tensor_side import Side
from fogline.benchmarks.tensor_ways import ECHO
from fogline.common import pki
from fogline.common.wire.tensors import CHUNK_BYTES

SCHEMA = 1
WAYS = ("tcp", "bare", "ours", "ours_no_crc")
GIB = 1 << 30


def enrol(folder: Path) -> None:
    """An authority and two devices."""
    authority = pki.Authority.create()
    pki.save_enrolment(authority.enrol("edge-1", "edge"), authority.certificate_pem, "edge-1", folder)
    fog = authority.enrol("fog-1", "fog", ("127.0.0.1",))
    pki.save_enrolment(fog, authority.certificate_pem, "fog-1", folder)


class Pair:
    """A receiver and its sender."""

    def __init__(self, way: str, folder: Path, size: int, python: str = "") -> None:
        module = "fogline.benchmarks.tensor_" + ("peers" if python else "ways")
        command = [python or sys.executable, "-m", module, way]
        rest = ["--folder", str(folder), "--size", str(size)]
        root = str(Path(__file__).resolve().parents[1])
        env = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        self.size = size
        self.receiver = Side([*command, "receive", *rest], env)
        self.sender = Side([*command, "send", *rest, "--address", str(self.receiver.hello["address"])], env)

    def transfer(self, *, check: bool = False, warm: bool = False) -> dict[str, Any]:
        """Move the tensor once; what it took. `warm`: it is the first after the way was warmed up."""
        self.receiver("begin", check=check, warm=warm)
        sent = self.sender("send", size=self.size)
        got = self.receiver("end")
        if got["count"] != 1:
            raise RuntimeError(f"{got['count']} tensors arrived")
        return {
            "mib_per_s": self.size / sent["seconds"] / (1 << 20),
            "cpu_s_per_gib": (sent["cpu_s"] + got["cpu_s"]) * GIB / self.size,
            "extra_ratio": got["extra_bytes"] / self.size,
            "stall_ms": got["stall_s"] * 1e3,
            "digest": got["digest"],
        }

    def warm_up(self) -> None:
        """Move a small tensor a few times: code, connections and buffers that are there in any process at work."""
        self.receiver("begin", check=False, warm=True)
        for _ in range(4):
            self.sender("send", size=self.size // 16)
        self.receiver("end")

    def close(self) -> None:
        """End both."""
        self.receiver.close()
        self.sender.close()


def bulk(pairs: dict[str, Pair], repeats: int) -> dict[str, Any]:
    """Every way, `repeats` times in turns."""
    for pair in pairs.values():
        pair.warm_up()
    digests = {name: pair.transfer(check=True, warm=True)["digest"] for name, pair in pairs.items()}
    if len(set(digests.values())) != 1:
        raise RuntimeError(f"not all ways brought the same bytes: {digests}")
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in pairs}
    for number in range(repeats + 1):
        for name in pairs if number % 2 else reversed(pairs):
            one = pairs[name].transfer()
            if number:
                taken[name].append(one)
    out: dict[str, Any] = {}
    for name, runs in taken.items():
        fields = [field for field in runs[0] if field != "digest"]
        row: dict[str, Any] = {field: statistics.median(run[field] for run in runs) for field in fields}
        row["runs"] = [{field: round(run[field], 4) for field in fields} for run in runs]
        for base in ("bare", "ours"):
            for field in ("mib_per_s", "cpu_s_per_gib"):
                ratios = [run[field] / other[field] for run, other in zip(runs, taken[base], strict=True)]
                row[f"{field}_of_{base}"] = statistics.median(ratios)
        out[name] = row
    return out


def main() -> None:
    """Parse the command line, measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="not used; all benchmarks take it")
    parser.add_argument("--size", type=int, default=64, help="MiB")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=400, help="round trips of each kind")
    parser.add_argument("--flower", default="", metavar="PYTHON")
    parser.add_argument("--hivemind", default="", metavar="PYTHON")
    parser.add_argument(
        "--hivemind-source", default="", metavar="DIR", help="unpacked source, with its protos compiled"
    )
    parser.add_argument("--quick", action="store_true", help="small and few; the figures mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = (4 if options.quick else options.size) << 20
    repeats, rounds = (2, 20) if options.quick else (options.repeats, options.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        enrol(folder)
        pairs = {way: Pair(way, folder, size) for way in WAYS}
        if options.flower:
            pairs["flower"] = Pair("flower", folder, size, options.flower)
        if options.hivemind:
            pairs["hivemind"] = Pair("hivemind", folder, size, options.hivemind)
        found = bulk(pairs, repeats)
        for pair in pairs.values():
            pair.close()
        echo = Pair("echo", folder, size)
        echo.sender("rounds", count=max(10, rounds // 10))
        trips = echo.sender("rounds", count=rounds)
        echo.close()
    for name, row in found.items():
        print(
            f"{name:<12} {row['mib_per_s']:7.0f} MiB/s  {row['cpu_s_per_gib']:6.2f} CPU s/GiB  "
            f"memory {row['extra_ratio']:5.2f}  stall {row['stall_ms']:6.1f} ms  CPU of bare "
            f"{row['cpu_s_per_gib_of_bare']:5.2f}  speed of ours {row['mib_per_s_of_ours']:5.2f}"
        )
    for name, row in trips.items():
        print(f"{name:<12} round trip {row['median_s'] * 1e3:6.2f} ms  p90 {row['p90_s'] * 1e3:6.2f} ms")
    if options.json:
        result = {
            "schema": SCHEMA,
            "hardware": describe(),
            "size": size,
            "chunk": CHUNK_BYTES,
            "load_average": os.getloadavg()[0],
            "repeats": repeats,
            "transfer": found,
            "round_trip": {"size": ECHO, "rounds": rounds, **trips},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
