"""What crosses the end of a module's call: the rule that says where a model can be cut.

A cut after a call is valid when everything that was computed before and is used after is in what the call returns, or
can be computed again from the model's inputs (a mask, positions) without parameters or random numbers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fogline.common.split.trace import Trace, View

Key = tuple[str, int]


@dataclass(frozen=True)
class Crossing:
    """A tensor that crosses a cut and isn't in what the module returns."""

    what: str

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Point:
    """A valid cut after call `call` of one trace, before operation `time`."""

    call: int
    time: int
    leaves: tuple[str, ...]  # paths, in what the call returns, of the tensors that are used after it
    inputs: frozenset[str]  # model inputs that are used after it, or that what is computed again needs
    rerun: frozenset[Key]  # calls before the cut that the part after it must run too
    buffers: frozenset[str]  # buffers that these read
    mutated: frozenset[str]  # leaves that are modified in place after the cut
    random: bool  # the code between the skipped calls draws random numbers


class Liveness:
    """Uses of every storage of a trace, and from them the cuts."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.end = len(trace.operations)
        self.reads: dict[int, list[tuple[int, View]]] = defaultdict(list)
        self.writes: dict[int, list[int]] = defaultdict(list)
        for number, operation in enumerate(trace.operations):
            for view in operation.reads:
                self.reads[view.storage].append((number, view))
            for storage in operation.writes:
                self.writes[storage].append(number)
        for leaf in trace.calls[0].outputs:
            self.reads[leaf.view.storage].append((self.end, leaf.view))
        self.inputs: dict[int, list[str]] = defaultdict(list)
        for name, view in trace.inputs.items():
            self.inputs[view.storage].append(name)
        self.impure = self._impure()
        self.reveals = [n for n, operation in enumerate(trace.operations) if operation.reveals]
        self.draws = [n for n, operation in enumerate(trace.operations) if operation.random]
        self.keys = {call.key: number for number, call in enumerate(trace.calls)}
        self.ancestors: list[frozenset[int]] = []
        for call in trace.calls:
            above = self.ancestors[call.parent] | {call.parent} if call.parent >= 0 else frozenset()
            self.ancestors.append(frozenset(above))

    def _impure(self) -> dict[int, int]:
        """From which operation on a storage holds what can't be computed again from inputs. Absent: never."""
        impure = dict.fromkeys(self.trace.parameters, -1)
        for number, operation in enumerate(self.trace.operations):
            pure = not operation.random and all(view.storage not in impure for view in operation.reads)
            for storage in operation.writes:
                # State that outlives the forward must be updated once, so not again after the cut.
                if (not pure or self._lasting(storage)) and storage not in impure:
                    impure[storage] = number
        return impure

    def _lasting(self, storage: int) -> bool:
        return storage not in self.trace.born and storage not in self.inputs

    def point(self, key: Key, varying: frozenset[Key]) -> Point | list[Crossing]:
        """The cut after a call, or what speaks against it. Calls in `varying` can't be skipped.

        The call must be in the trace.
        """
        number = self.keys[key]
        call, time = self.trace.calls[number], self.trace.calls[number].end
        if any(leaf.inside for leaf in call.outputs) or key in varying:
            return [Crossing("it returns an object that can't be sent in parts")]
        live = self._live(time)
        leaves = [leaf for leaf in call.outputs if leaf.view.storage in live]
        against = [
            Crossing(f"{self._describe(leaf.view.storage, time)} is only partly in what it returns")
            for leaf in leaves
            if not self._whole(leaf.view, time)
        ]
        sent = [leaf.view.storage for leaf in leaves]
        if not leaves:
            against.append(Crossing("nothing that it returns is used after it"))
        if len(set(sent)) < len(sent):
            against.append(Crossing("two tensors that it returns share memory"))
        if any(s in self.trace.parameters or s in self.trace.buffers or s not in self.trace.born for s in sent):
            against.append(Crossing("it returns a tensor that it didn't compute"))
        targets = [(storage, time) for storage in sorted(live - set(sent))]
        found = self._again(number, time, targets, varying)
        if isinstance(found, list):
            against += found
        if against or isinstance(found, list):
            return against
        inputs, rerun, buffers, skipped = found
        return Point(
            number,
            time,
            tuple(leaf.path for leaf in leaves),
            inputs,
            rerun,
            buffers,
            frozenset(leaf.path for leaf in leaves if any(w >= time for w in self.writes[leaf.view.storage])),
            any(n < time and self._in_glue(n, number, skipped) for n in self.draws),
        )

    def _live(self, time: int) -> set[int]:
        """Storages that hold something from before `time` and are used from then on."""
        live = set()
        for storage, reads in self.reads.items():
            if max(n for n, _ in reads) < time:
                continue
            if storage in self.inputs or any(w < time for w in self.writes[storage][:1]):
                live.add(storage)
        return live

    def _whole(self, view: View, time: int) -> bool:
        """Whether later uses of the storage see no more than this part of it."""
        if view.covers(self.trace.sizes[view.storage]):
            return True
        same = (view.offset, view.shape, view.stride)
        return all((v.offset, v.shape, v.stride) == same for n, v in self.reads[view.storage] if n >= time)

    def _again(
        self, cut: int, time: int, targets: list[tuple[int, int]], varying: frozenset[Key]
    ) -> tuple[frozenset[str], frozenset[Key], frozenset[str], frozenset[int]] | list[Crossing]:
        """What must be computed again for `targets`: inputs, calls that must run, buffers; and the calls to skip."""
        rerun = {self.keys[key] for key in varying if key in self.keys}
        rerun |= {n for n in range(cut) if any(leaf.inside for leaf in self.trace.calls[n].outputs)}
        inputs: set[str] = set()
        buffers: set[str] = set()
        done: set[tuple[int, int]] = set()
        needed: set[int] = set()  # storages
        todo = list(targets)
        while True:
            while todo:
                storage, at = todo.pop()
                if (storage, at) in done:
                    continue
                done.add((storage, at))
                if self.impure.get(storage, self.end + 1) < at:
                    return [
                        Crossing(self._describe(s, time)) for s, _ in targets if self.impure.get(s, self.end + 1) < time
                    ] or [Crossing(f"{self._describe(storage, at)}, on whose values the code before the cut branches")]
                needed.add(storage)
                inputs |= set(self.inputs.get(storage, ()))
                buffers |= set(self.trace.buffers.get(storage, ()))
                for n in self.writes[storage]:
                    if n >= at:
                        break
                    inside = self.trace.operations[n].call
                    above = {inside, *self.ancestors[inside]}
                    if cut in above:
                        return [Crossing(self._describe(storage, at))]
                    rerun |= above
                    todo += [(view.storage, n) for view in self.trace.operations[n].reads]
            rerun |= {n for n in range(cut) if any(leaf.view.storage in needed for leaf in self.trace.calls[n].outputs)}
            skipped = self.skipped(cut, rerun)
            for n in self.reveals:
                if n < time and self._in_glue(n, cut, skipped):
                    views = self.trace.operations[n].reads
                    todo += [(view.storage, n) for view in views if (view.storage, n) not in done]
            if not todo:
                keys = frozenset(self.trace.calls[n].key for n in rerun)
                return frozenset(inputs), keys, frozenset(buffers), skipped

    def skipped(self, cut: int, rerun: set[int]) -> frozenset[int]:
        """The outermost calls before `cut` that need not run."""
        out: set[int] = set()
        for n in range(1, cut):
            if n in rerun or n in self.ancestors[cut] or self.ancestors[n] & out:
                continue
            out.add(n)
        return frozenset(out)

    def _in_glue(self, operation: int, cut: int, skipped: frozenset[int]) -> bool:
        """Whether an operation before the cut is in code that runs again after it."""
        inside = self.trace.operations[operation].call
        above = {inside, *self.ancestors[inside]}
        return cut not in above and not above & skipped

    def _describe(self, storage: int, time: int) -> str:
        trace = self.trace
        if storage in trace.buffers and self.writes[storage]:
            return f"buffer {trace.buffers[storage][0]!r}, updated before and read after"
        writers = [n for n in self.writes[storage] if n < time]
        readers = [(n, view) for n, view in self.reads[storage] if n >= time]
        view = readers[0][1] if readers else self.reads[storage][-1][1]
        made = self._path(trace.operations[writers[-1]].call) if writers else "an input"
        users = sorted({self._path(trace.operations[n].call) for n, _ in readers if n < self.end})
        names = [leaf.path for leaf in trace.calls[0].outputs if leaf.view.storage == storage]
        used = [f"used in {users[0]}" + (f" and {len(users) - 1} more" if len(users) > 1 else "")] if users else []
        used += [f"part of the model's output ({names[0]})"] if names else []
        return f"{view.shape} from {made}, {' and '.join(used) or 'read before the cut'}"

    def _path(self, call: int) -> str:
        return repr(self.trace.calls[call].path or "the model itself")
