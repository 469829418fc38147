"""The host's end of `split_link`: the real tensor service, running the tail of the cut that a request names."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fogline.common.codecs import Chain
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.server import aio_server
from fogline.common.rpc.tensor_execution import Done, Started
from fogline.common.rpc.tensor_service import TensorService
from fogline.common.rpc.tensor_stream import add_service
from fogline.common.split.cuts import cuts
from fogline.common.split.profile import INPUT
from fogline.common.split.segments import split
from fogline.common.wire.tensors import Dtype, Frame, Limits, Role, TensorHeader
from fogline.splitting.inputs import model as build_model


class Tails:
    """Runs the tail of the cut that a request's body names, on what its tensor's codec decodes to."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str], example: torch.Tensor) -> None:
        cuts(model, example)
        self._tails: list[torch.nn.Module] = []
        for name in names:
            tail = model if name == INPUT else split(model, at=name)[-1]
            assert tail is not None
            self._tails.append(tail)
        self._chains: dict[str, Chain] = {}

    def describe(self, model: str) -> pb.DescribeResponse:
        """One model is served."""
        return pb.DescribeResponse(allowed=True)

    def open(self, peer: Peer, message: pb.OpenSession) -> Started | None:
        """Every session is served by the same tails; inference keeps nothing."""
        return Started(self, durable_answers=True)

    def execute(self, body: Any, frame: Frame) -> Done:
        """Decode, infer; the answer is the first tensor of the result, raw."""
        (header,) = frame.tensors
        if not isinstance(body, pb.Forward) or body.cut >= len(self._tails):
            raise ConfigError("only forwards of known cuts are served here")
        chain = self._chains.setdefault(header.name, Chain.parse(header.name))
        tensor = chain.decoder().decode(header.stages, frame.parts[0], torch.float32, header.shape)
        with torch.no_grad():
            output = self._tails[body.cut](tensor)
        scores = output if isinstance(output, torch.Tensor) else output[0]
        data = scores.contiguous().numpy().tobytes()
        return Done((TensorHeader(Role.OUTPUT, Dtype.FLOAT32, tuple(scores.shape), len(data)),), (data,))

    def save(self, through: int, answers: Sequence[Frame]) -> None:
        """Nothing has to survive."""

    def interrupt(self) -> None:
        """Nothing waits for another host."""

    def close(self, *, forget: bool) -> None:
        """Nothing to free."""


async def serve(options: argparse.Namespace) -> None:
    """Until the parent ends it."""
    torch.set_num_threads(1)
    example = torch.zeros(1, 3, 224, 224)
    tails = Tails(build_model(options.model), json.loads(options.cuts), example)
    folder = Path(options.tls)
    tls = TlsConfig(ca=folder / "ca.pem", cert=folder / "fog.pem", key=folder / "fog.key")
    service = TensorService(tails, Limits())
    server, port = await aio_server(options.listen, tls, LinkMeter("edge-fog"), [(add_service, service)])
    sys.stdout.write(f"ready {port}\n")
    sys.stdout.flush()
    await server.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("--listen", "--tls", "--model", "--cuts"):
        parser.add_argument(name, required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
