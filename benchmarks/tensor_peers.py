"""How Flower and hivemind move a tensor, by their own code, for `tensor_transport`. Runs in an environment of theirs.

    python -m fogline.benchmarks.tensor_peers (flower|hivemind) (receive|send) --folder DIR [--address A] [--size N]

**Flower**: an array becomes an `ArrayRecord`, an object tree of chunks named by SHA-256, as a client app's reply does.
The sender announces the tree and pushes the objects with Flower's own `push_objects` over its own gRPC stub, channel
and server; the receiver keeps them in Flower's `InMemoryObjectStore` and inflates them to an array. Left out in its
favour: the SuperLink's records of runs, and that the receiving app would pull everything from the SuperLink once more.

**hivemind**: `serialize_torch_tensor`, `split_for_streaming`, a stream of `ExpertRequest`s over hivemind's own libp2p
daemons with TLS, and `deserialize_tensor_stream`, as the forward call of a remote expert does.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import typing
from pathlib import Path
from typing import Any

import numpy as np

from fogline.benchmarks.tensor_side import Received, new_loop, receive, send


def array(size: int) -> Any:
    """The payload of `tensor_ways`."""
    return np.random.default_rng(7).standard_normal(size // 4, np.float32)


# -- Flower


def flower_receive(folder: Path) -> None:
    """Flower's gRPC server with its store."""
    from flwr.proto import fleet_pb2, fleet_pb2_grpc, message_pb2
    from flwr.supercore.grpc import generic_create_grpc_server
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

    received = Received()

    class Servicer(fleet_pb2_grpc.FleetServicer):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self._store = InMemoryObjectStore()
            self._lock = threading.Lock()

        def PushMessages(self, request: Any, context: Any) -> Any:
            self._store = InMemoryObjectStore()  # one message at a time
            missing = self._store.preregister(1, request.message_object_trees[0])
            return fleet_pb2.PushMessagesResponse(objects_to_push=missing, session_id="1")

        def PushObject(self, request: Any, context: Any) -> Any:
            self._store.put(request.object_id, request.object_content)
            return message_pb2.PushObjectResponse(stored=True)

        def ConfirmMessageReceived(self, request: Any, context: Any) -> Any:
            contents = {name: entry.content for name, entry in self._store.store.items()}
            self._store = InMemoryObjectStore()
            record: Any = inflate_object_from_contents(request.message_object_id, contents)
            received(np.ascontiguousarray(next(iter(record.values())).numpy()))
            return message_pb2.ConfirmMessageReceivedResponse()

    files = [(folder / name).read_bytes() for name in ("ca.pem", "fog-1.pem", "fog-1.key")]
    server = generic_create_grpc_server(
        (Servicer(), fleet_pb2_grpc.add_FleetServicer_to_server), "127.0.0.1:0", certificates=tuple(files)
    )
    server.start()
    receive(server.bound_address, received, new_loop())


def flower_send(folder: Path, address: str, size: int) -> None:
    """Flower's client side: deflate, announce, push, confirm."""
    from flwr.app import ArrayRecord
    from flwr.proto import fleet_pb2, fleet_pb2_grpc, message_pb2, node_pb2
    from flwr.supercore.grpc import create_channel
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import push_objects

    data = array(size)
    channel = create_channel(address, insecure=False, root_certificates=(folder / "ca.pem").read_bytes())
    stub = fleet_pb2_grpc.FleetStub(channel)
    node = node_pb2.Node(node_id=1)

    def once(size: int) -> None:
        record = ArrayRecord([data[: size // 4]])
        with no_object_id_recompute():
            name = record.object_id
            announced = stub.PushMessages(
                fleet_pb2.PushMessagesRequest(node=node, message_object_trees=[get_object_tree(record)])
            )
            push = make_push_object_fn_protobuf(stub.PushObject, node, 1, announced.session_id)
            push_objects(get_all_nested_objects(record), push, object_ids_to_push=set(announced.objects_to_push))
        stub.ConfirmMessageReceived(
            message_pb2.ConfirmMessageReceivedRequest(node=node, run_id=1, message_object_id=name)
        )

    send(once)


# -- hivemind


def _transfer(received: Received) -> Any:
    from hivemind.compression import deserialize_tensor_stream
    from hivemind.p2p import P2PContext, ServicerBase
    from hivemind.proto.runtime_pb2 import ExpertRequest, ExpertResponse
    from hivemind.utils.asyncio import amap_in_executor

    class Transfer(ServicerBase):  # type: ignore[misc]  # untyped
        """An expert that takes its input. hivemind reads the types of requests and responses from the annotations."""

        async def rpc_forward_stream(self, requests: Any, context: Any) -> Any:
            (tensor,) = await deserialize_tensor_stream(amap_in_executor(lambda request: request.tensors, requests))
            received(tensor.numpy())
            del tensor
            yield ExpertResponse()

    Transfer.rpc_forward_stream.__annotations__.update(
        requests=typing.AsyncIterator[ExpertRequest],
        context=P2PContext,
        **{"return": typing.AsyncIterator[ExpertResponse]},
    )
    return Transfer()


def hivemind_receive(folder: Path) -> None:
    """An expert behind a daemon."""
    from hivemind.p2p import P2P

    received, loop = Received(), new_loop()

    async def start() -> str:
        p2p = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"])
        await _transfer(received).add_p2p_handlers(p2p)
        return str((await p2p.get_visible_maddrs())[0])

    receive(asyncio.run_coroutine_threadsafe(start(), loop).result(), received, loop)


def hivemind_send(folder: Path, address: str, size: int) -> None:
    """Serialise, split, call."""
    import torch
    from hivemind.compression import serialize_torch_tensor
    from hivemind.p2p import P2P, PeerID
    from hivemind.p2p.p2p_daemon_bindings.control import DEFAULT_MAX_MSG_SIZE
    from hivemind.proto.runtime_pb2 import ExpertRequest
    from hivemind.utils.asyncio import amap_in_executor, iter_as_aiter
    from hivemind.utils.streaming import split_for_streaming

    torch.set_num_threads(1)
    tensor, loop = torch.from_numpy(array(size)), new_loop()

    async def start() -> Any:
        p2p = await P2P.create(initial_peers=[address], host_maddrs=["/ip4/127.0.0.1/tcp/0"], dht_mode="client")
        return type(_transfer(Received())).get_stub(p2p, PeerID.from_base58(address.rpartition("/")[2]))

    stub = asyncio.run_coroutine_threadsafe(start(), loop).result()

    async def call(size: int) -> None:
        parts = iter(split_for_streaming(serialize_torch_tensor(tensor[: size // 4]), DEFAULT_MAX_MSG_SIZE))
        requests = amap_in_executor(lambda part: ExpertRequest(uid="x", tensors=[part]), iter_as_aiter(parts))
        async for _ in await stub.rpc_forward_stream(requests):
            pass

    send(lambda size: asyncio.run_coroutine_threadsafe(call(size), loop).result())


def main() -> None:
    """Be one side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("peer", choices=["flower", "hivemind"])
    parser.add_argument("side", choices=["receive", "send"])
    parser.add_argument("--folder", type=Path, required=True, help="certificates")
    parser.add_argument("--address", default="")
    parser.add_argument("--size", type=int, default=64 << 20, help="bytes")
    options = parser.parse_args()
    match options.peer, options.side:
        case "flower", "receive":
            flower_receive(options.folder)
        case "flower", _:
            flower_send(options.folder, options.address, options.size)
        case _, "receive":
            hivemind_receive(options.folder)
        case _:
            hivemind_send(options.folder, options.address, options.size)


if __name__ == "__main__":
    main()
