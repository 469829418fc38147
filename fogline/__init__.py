"""Fogline: learning across edge, fog and cloud."""

import os

__version__ = "0.1.0"

# gRPC writes to stderr by itself, between our structured logs, what we raise and log as errors anyway. It looks at this
# when it is first imported, so nothing later than here would do; a value that the user has set stays.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
