"""Who may call what: the one table. A method that is not in it is for nobody."""

from __future__ import annotations

from collections.abc import Mapping

EDGE, FOG, CLOUD = "edge", "fog", "cloud"
DEVICES = frozenset((EDGE, FOG, CLOUD))
# Also for who has no certificate: health tells only that we serve, and the certificate service judges for itself.
ANYBODY: frozenset[str] | None = None

_EDGES = frozenset((EDGE,))
_MEMBERS = frozenset((EDGE, FOG))

_SERVICES: Mapping[str, Mapping[str, frozenset[str] | None]] = {
    "fogline.v1.ImageService": dict.fromkeys(("Hello", "Upload", "Subscribe", "Fetch"), _EDGES),
    "fogline.v1.FleetService": {
        **dict.fromkeys(("Join", "Heartbeat", "Leave"), _MEMBERS),
        **dict.fromkeys(("FindFogs", "FleetStatus"), DEVICES),
    },
    "fogline.v1.ModelService": dict.fromkeys(("PublishModel", "LatestModel", "FetchModel"), DEVICES),
    "fogline.v1.TensorService": dict.fromkeys(("Describe", "Probe", "Session"), _MEMBERS),
    "fogline.v1.AuthorityService": dict.fromkeys(("Enrol", "Renew", "RevocationList"), ANYBODY),
    "grpc.health.v1.Health": dict.fromkeys(("Check", "Watch", "List"), ANYBODY),
}

# "/package.Service/Method" to the roles that may call it.
TABLE: Mapping[str, frozenset[str] | None] = {
    f"/{service}/{method}": roles for service, methods in _SERVICES.items() for method, roles in methods.items()
}
