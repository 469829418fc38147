"""Calls between tiers: channels, servers, identity, errors, byte accounting.

Server (fog node, cloud server; `handlers` raise errors of `common/errors.py`)::

    class Images(images_pb2_grpc.ImageServiceServicer):
        async def Hello(self, request, context):
            who = peer(context)                      # Peer(name="edge-1", role="edge"), from the certificate
            ...
            raise CapacityError("the store is full; make room")

    meter = LinkMeter("edge-fog", metrics.link_bytes)
    server, port = await aio_server("0.0.0.0:7400", tls, meter, [(add_ImageServiceServicer_to_server, Images())])
    await server.set_ready(True)                     # health: SERVING
    await server.stop(grace_s=5)

Client (sync; `await aio_connect(...)` takes the same arguments)::

    backoff = Backoff()                              # one per peer, shared by its threads
    while not stop.is_set():
        try:
            # `me` is used only where tls.insecure leaves no certificate
            with connect(address, tls, meter=meter, deadline_s=20, me=Peer("edge-1", "edge")) as channel:
                stub = images_pb2_grpc.ImageServiceStub(channel)
                with translate(f"fog node {address}"):   # gRPC errors become errors of common/errors.py
                    hello = stub.Hello(images_pb2.HelloRequest(protocol=1))
                    backoff.reset()
                    for answer in stub.Upload(requests()):
                        ...
        except UnavailableError:                     # IdentityError and ConfigError end the process
            backoff.wait(stop)

Modules: `channel` (connect, aio_connect), `server` (aio_server), `peer` (Peer, peer), `status` (translate),
`permissions` (who may call what), `retry` (Backoff), `accounting` (LinkMeter), `gen` (generated code). The rest is
theirs.
"""
