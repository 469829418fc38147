"""Sessions of a tensor plane whose line drops, stalls and is damaged, and whose host restarts, at random, over mTLS."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "common" / "rpc"))  # `rpc_helpers`, under importlib mode

from rpc_helpers import Loop
from tensor_parts import Line, Serving, chain, send

from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.wire.session_client import ClientSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROUNDS, OPERATIONS = 6, 30


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def trouble(chance: random.Random, line: Line, serving: Serving) -> None:
    """Something, a third of the time."""
    match chance.random():
        case r if r < 0.15:
            line.budget = chance.randrange(200_000)
        case r if r < 0.2:
            line.stall, line.budget = True, chance.randrange(100_000)
        case r if r < 0.25:
            line.damage, line.budget = True, chance.randrange(200, 100_000)
        case r if r < 0.3:
            line.cut()
        case r if r < 0.33:
            serving.restart()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_happens_every_operation_is_executed_once_and_answered(
    loop: Loop, certificates: Any, seed: int
) -> None:
    chance = random.Random(seed)
    serving = Serving(loop, certificates.tls("fog-1", "fog"), stall_s=0.5)
    line, edge = Line(serving.port), certificates.tls("edge-1", "edge")
    try:
        for _ in range(ROUNDS):
            session = ClientSession(durable_answers=False, chunk_bytes=chance.choice([8192, 20_000, 262_144]))
            client = serving.client(line.port, tls=edge, session=session, session_id=os.urandom(16), stall_s=0.8)
            sent, futures = [], []
            for _ in range(OPERATIONS):
                trouble(chance, line, serving)
                sent.append(chance.randbytes(chance.choice([0, 1, 500, 30_000, 200_000])))
                futures.append(send(client, sent[-1], pb.Checkpoint() if chance.random() < 0.15 else None))
                if chance.random() < 0.3:
                    futures[-1].result(60)
            for number, future in enumerate(futures, 1):
                answer = future.result(60)
                assert answer.frame.seq == number
                assert bytes(answer.frame.parts[0])[:32] == chain(sent[:number])
            line.budget, line.stall, line.damage = None, False, False
            client.close()
            serving.host.disk.clear()
        assert line.connections > ROUNDS
    finally:
        line.close()
        serving.stop()
