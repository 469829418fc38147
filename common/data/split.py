"""Dealing sequences out to edges, and each sequence into a part to train on and a part to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence

from fogline.common.data.sequence import AnnotatedSequence
from fogline.common.errors import InputError


def split_train_eval(sequence: AnnotatedSequence, fraction: float = 0.7) -> tuple[AnnotatedSequence, AnnotatedSequence]:
    """The first `fraction` of a sequence, and the rest: never interleaved, as neighbouring frames are near copies."""
    if not 0 < fraction < 1:
        raise InputError(f"{sequence.name}: a fraction of {fraction} can't be split; give one between 0 and 1")
    cut = round(len(sequence.frames) * fraction)
    if cut in (0, len(sequence.frames)):
        raise InputError(
            f"{sequence.name}: {len(sequence.frames)} frames are too few to split at {fraction}; add frames"
        )
    return sequence.part(0, cut), sequence.part(cut, len(sequence.frames))


def split_runs(sequences: Sequence[AnnotatedSequence], n_edges: int) -> list[list[AnnotatedSequence]]:
    """One list of sequences for each edge; every frame goes to exactly one edge.

    Fewer sequences than edges: they are cut into consecutive runs, one for each edge, as equal in size as can be.
    More sequences than edges: whole sequences, several to an edge, spread by their number of frames.
    Raises InputError when there are fewer frames than edges.
    """
    total = sum(len(s.frames) for s in sequences)
    if not 1 <= n_edges <= total:
        raise InputError(
            f"{total} frames in {len(sequences)} sequences can't feed {n_edges} edges; use 1 to {total} edges"
        )
    if len(sequences) > n_edges:
        return _spread(sequences, n_edges)
    runs = [1] * len(sequences)
    for _ in range(n_edges - len(sequences)):
        longest = max(range(len(sequences)), key=lambda i: len(sequences[i].frames) / runs[i])
        runs[longest] += 1
    return [[run] for sequence, count in zip(sequences, runs, strict=True) for run in _cut(sequence, count)]


def _cut(sequence: AnnotatedSequence, count: int) -> list[AnnotatedSequence]:
    if count == 1:
        return [sequence]
    bounds = [len(sequence.frames) * i // count for i in range(count + 1)]
    return [sequence.part(bounds[i], bounds[i + 1], f"{sequence.name}-{i + 1}") for i in range(count)]


def _spread(sequences: Sequence[AnnotatedSequence], n_edges: int) -> list[list[AnnotatedSequence]]:
    edges: list[list[int]] = [[] for _ in range(n_edges)]
    load = [0] * n_edges
    for i in sorted(range(len(sequences)), key=lambda i: (-len(sequences[i].frames), i)):
        edge = load.index(min(load))
        edges[edge].append(i)
        load[edge] += len(sequences[i].frames)
    return [[sequences[i] for i in sorted(chosen)] for chosen in edges]
