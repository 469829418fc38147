"""What a model's cuts cost on one host: times of heads and tails, and what each tensor codec makes of each cut.

A profile is measured once (`fogline split profile`, common/split/measure.py) and read by planners, which need no torch.
It is of one architecture, one host and one version of torch, and is refused anywhere else: figures of another model or
machine would be believed and be wrong. The table by batch size is that of Dynamic Split Computing (Bakhtiarnia 2022).
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from fogline.common.errors import ConfigError, FormatError, InputError

SCHEMA = 1
INPUT = "input"  # the name of the cut before everything: the model's input itself is sent
MAX_BYTES = 64 << 20  # of a profile's file

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
ByBatch = dict[int, Seconds]


class CodecFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One codec at one cut, by batch size: bytes of the whole batch and seconds, medians over the calibration set."""

    codec: str
    coded_bytes: dict[int, Annotated[float, msgspec.Meta(ge=0)]]
    encode_s: ByBatch
    decode_s: ByBatch
    accuracy_drop: float = 0.0  # share of the calibration set lost to it; negative where it gained


class CutFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cut on this host, by batch size. `ratio` is elements of the cut ÷ elements of the input."""

    name: str
    ratio: Annotated[float, msgspec.Meta(ge=0)]
    head_s: ByBatch
    tail_s: ByBatch
    codecs: tuple[CodecFigures, ...]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model on a host. `cuts` are in forward order and begin with `INPUT`."""

    schema: int
    model: str
    architecture: str  # hash, as of common/split/weights.py
    hardware: str
    torch: str
    threads: Count
    input_elements: Count  # of one sample
    whole_s: ByBatch
    cuts: tuple[CutFigures, ...]
    calibration: str = ""  # what accuracy and coded sizes were measured on
    output_bytes: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # of one sample's result

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes that were measured."""
        return tuple(sorted(self.whole_s))

    def check(self, *, architecture: str, hardware: str | None = None, torch: str | None = None) -> None:
        """Refuse a profile of something else. Raises ConfigError with the command that renews it."""
        for what, mine, wanted in (
            ("architecture", self.architecture, architecture),
            ("hardware", self.hardware, hardware),
            ("torch", self.torch, torch),
        ):
            if wanted is not None and mine != wanted:
                raise ConfigError(
                    f"the profile of {self.model} is stale: its {what} is {mine!r}, here it is {wanted!r}; "
                    f"measure again with `{self.renew()}`"
                )

    def renew(self, batches: tuple[int, ...] | None = None) -> str:
        """The command that measures this profile again."""
        sizes = ",".join(str(size) for size in (batches or self.batches))
        return f"fogline split profile --model {self.model} --batches {sizes} -o FILE"

    def at(self, table: Mapping[int, float], batch: int) -> float:
        """A figure at a batch size: measured, or on the line between the two measured ones beside it.

        Beyond the smallest or largest it continues in proportion, up to a factor of 2. Raises InputError further out.
        """
        if batch < 1:
            raise InputError(f"a batch of {batch}; give 1 or more")
        if batch in table:
            return table[batch]
        sizes = sorted(table)
        if not sizes or batch > 2 * sizes[-1] or 2 * batch < sizes[0]:
            wider = tuple(sorted({*sizes, batch}))
            raise InputError(
                f"{self.model}: nothing is known about a batch of {batch}; measured are "
                f"{', '.join(map(str, sizes)) or 'none'}, and only up to twice beyond "
                f"is guessed: measure it with `{self.renew(wider)}`"
            )
        if batch < sizes[0]:
            return table[sizes[0]] * batch / sizes[0]
        if batch > sizes[-1]:
            return table[sizes[-1]] * batch / sizes[-1]
        above = next(size for size in sizes if size > batch)
        below = max(size for size in sizes if size < batch)
        share = (batch - below) / (above - below)
        return (1 - share) * table[below] + share * table[above]

    def scaled(self, factor: float, hardware: str | None = None) -> Profile:
        """The same on a host that takes `factor` times as long for everything: an assumption, not a measurement."""
        if not (factor > 0 and math.isfinite(factor)):
            raise InputError(f"a host that is {factor} times as slow; give a factor above 0")

        def slow(table: ByBatch) -> ByBatch:
            return {size: factor * seconds for size, seconds in table.items()}

        cuts = tuple(
            msgspec.structs.replace(
                cut,
                head_s=slow(cut.head_s),
                tail_s=slow(cut.tail_s),
                codecs=tuple(
                    msgspec.structs.replace(one, encode_s=slow(one.encode_s), decode_s=slow(one.decode_s))
                    for one in cut.codecs
                ),
            )
            for cut in self.cuts
        )
        name = hardware or f"{self.hardware} x{factor:g} as slow"
        return msgspec.structs.replace(self, whole_s=slow(self.whole_s), cuts=cuts, hardware=name)


def save(profile: Profile, path: Path) -> None:
    """Write as JSON. Raises ConfigError where the file can't be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}; choose another") from error


def load(path: Path) -> Profile:
    """Read and check. Raises ConfigError where there is no such file and FormatError where it is no profile."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path}: {path.stat().st_size:,} bytes are too many for a profile; measure it again")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; `fogline split profile` makes one") from error
    return parse(data, str(path))


def parse(data: bytes, name: str) -> Profile:
    """A profile from its JSON. Raises FormatError."""
    try:
        found = msgspec.json.decode(data, type=Profile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{name}: not a profile ({error}); make it with `fogline split profile`") from error
    if found.schema != SCHEMA:
        raise FormatError(f"{name}: a profile of schema {found.schema}, this version reads {SCHEMA}; measure it again")
    if not found.cuts or found.cuts[0].name != INPUT:
        raise FormatError(f"{name}: its first cut must be {INPUT!r}; measure it again")
    if len({cut.name for cut in found.cuts}) != len(found.cuts):
        raise FormatError(f"{name}: a cut stands in it twice; measure it again")
    sizes = set(found.whole_s)
    tables = [found.whole_s]
    for cut in found.cuts:
        tables += [cut.head_s, cut.tail_s]
        for one in cut.codecs:
            tables += [one.coded_bytes, one.encode_s, one.decode_s]
            if not math.isfinite(one.accuracy_drop):
                raise FormatError(f"{name}: {cut.name}, {one.codec}: an accuracy drop of {one.accuracy_drop}")
    if not sizes or any(set(table) != sizes or any(size < 1 for size in table) for table in tables):
        raise FormatError(f"{name}: its tables are not all of the same batch sizes, 1 or more; measure it again")
    return found


def hardware_id(threads: int) -> str:
    """This host for timings: processor, cores, threads in use and any limit on CPU time that it was given."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    processor = names[0] if names else platform.processor() or "unknown processor"
    limit = _cpu_limit()
    quota = "" if limit is None else f", {limit:g} CPUs"
    return f"{processor}, {platform.machine()}, {os.cpu_count()} cores, {threads} threads{quota}"


def _cpu_limit() -> float | None:
    """CPUs that the control group allows, of either version; None without a limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in groups:
        _, controllers, path = line.split(":", 2)
        try:
            if controllers == "":
                quota, period = Path(f"/sys/fs/cgroup{path}/cpu.max").read_text(encoding="utf-8").split()
            elif "cpu" in controllers.split(","):
                folder = Path("/sys/fs/cgroup/cpu" + path)
                quota, period = ((folder / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
            else:
                continue
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return round(int(quota) / int(period), 3)
    return None
