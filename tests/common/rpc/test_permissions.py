"""Every method of the contract, called by every role: who gets through is what the table says."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from rpc_helpers import Loop

from fogline.common.errors import FoglineError, IdentityError
from fogline.common.rpc import gen
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.permissions import TABLE
from fogline.common.rpc.server import aio_server
from fogline.common.rpc.status import translate

ROLES = ("edge", "fog", "cloud")


def methods() -> Iterator[str]:
    """Every method of the contract, as it is called."""
    for module in pkgutil.iter_modules(gen.__path__):
        if module.name.endswith("_pb2"):
            made: Any = importlib.import_module(f"{gen.__name__}.{module.name}")
            for service in made.DESCRIPTOR.services_by_name.values():
                yield from (f"/{service.full_name}/{method.name}" for method in service.methods)


async def echo(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    yield Empty()


def add(names: list[str], server: Any) -> None:
    """Serve every method, and one that is in no table."""
    for name in names:
        _, service, method = name.split("/")
        handler = grpc.stream_stream_rpc_method_handler(echo, Empty.FromString, Empty.SerializeToString)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])


def test_every_method_of_the_contract_is_in_the_table() -> None:
    ours = {name for name in TABLE if name.startswith("/fogline.")}
    assert set(methods()) == ours
    assert len(ours) > 15


def test_every_method_called_by_every_role(loop: Loop, certificates: Any) -> None:
    unknown = "/fogline.v1.ImageService/Backdoor"
    names = [*(name for name in TABLE if not name.startswith("/grpc.")), unknown]
    served = aio_server("127.0.0.1:0", certificates.tls("gate", "fog"), LinkMeter("edge-fog"), [(add, names)])
    server, port = loop.run(served)
    got: dict[tuple[str, str], bool] = {}
    for role in ROLES:
        tls = certificates.tls(f"some-{role}", role)
        with connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("edge-fog")) as channel:
            for name in names:
                call: Any = channel.stream_stream(name, Empty.SerializeToString, Empty.FromString)
                refused = ""
                try:
                    with translate():
                        list(call(iter([Empty()]), timeout=10))
                except IdentityError as error:
                    refused = str(error)
                assert not refused or f"has role '{role}'" in refused
                got[name, role] = not refused
    loop.run(server.stop(0))
    for name in names:
        allowed = TABLE.get(name, frozenset())
        for role in ROLES:
            assert got[name, role] == (allowed is None or role in allowed), (name, role)


def test_who_says_no_role_gets_nowhere(loop: Loop) -> None:
    """Without TLS, on loopback; with TLS there is no connection without a certificate."""
    from rpc_helpers import INSECURE

    names = [name for name, roles in TABLE.items() if roles is not None]
    server, port = loop.run(aio_server("127.0.0.1:0", INSECURE, LinkMeter("edge-fog"), [(add, names)]))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in names:
            call: Any = channel.stream_stream(name, Empty.SerializeToString, Empty.FromString)
            with pytest.raises(FoglineError, match="x-fogline-name"), translate():
                list(call(iter([Empty()]), timeout=10))
    loop.run(server.stop(0))


def test_a_server_of_a_tenant_serves_no_edge_of_another(loop: Loop, certificates: Any) -> None:
    name = "/fogline.v1.TensorService/Describe"
    own = certificates.tls("gate", "fog", tenant="acme")
    server, port = loop.run(aio_server("127.0.0.1:0", own, LinkMeter("edge-fog"), [(add, [name])]))

    def call(tls: Any) -> None:
        with connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("edge-fog")) as channel, translate():
            method: Any = channel.stream_stream(name, Empty.SerializeToString, Empty.FromString)
            list(method(iter([Empty()]), timeout=10))

    call(certificates.tls("cam", "edge", tenant="acme"))
    call(certificates.tls("other-gate", "fog"))
    for tenant in ("", "other"):
        with pytest.raises(IdentityError, match="another tenant"):
            call(certificates.tls("cam", "edge", tenant=tenant))
    loop.run(server.stop(0))
