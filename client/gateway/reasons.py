"""Why the connection to the server does not work, in words for a data manager."""

import grpc
from flwr.supercore.error import ApiErrorCode, FlowerError

from client.gateway.connection import CallFailed
from common import release

_UNKNOWN_KEY = (
    "the server does not take this site's key, {fingerprint}. If it is new, read it to the study operator, who enrols "
    "it; if it was revoked, make another with `consilium-site key --renew`; if another gateway of this site runs, or "
    "did until a moment ago, stop it: the server notices within half a minute"
)
_CERTIFICATE = (
    "the server's certificate does not fit ca.pem and the name in gateway.yaml, or has expired; ask the study operator "
    "for the kit that is valid now"
)
_CLOCK = (
    "the server refused this machine's clock, which differs too much from its own; `consilium-site check-connection` "
    "says by how much"
)
_REVOKED = "the server knows this site's key no more; it was revoked, or the server was set up again"
_VERSION = (
    "the server is of another version than this gateway, Consilium {version}; install the version that the start-up "
    "kit names, or ask the study operator for a new kit"
)
_SILENT = "the server cannot be reached, or the line went silent"


def reason(failed: CallFailed, fingerprint: str) -> str:
    """The reason of a failed call, as the end of a sentence."""
    details = failed.details
    flowers = FlowerError.from_json(details)
    if flowers is not None and flowers.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return _UNKNOWN_KEY.format(fingerprint=fingerprint)
    match failed.code:
        case grpc.StatusCode.UNAVAILABLE if "certificate" in details.lower():
            return _CERTIFICATE
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return f"{_SILENT} ({details[:200]})" if details else _SILENT
        case grpc.StatusCode.UNAUTHENTICATED if "timestamp" in details:
            return _CLOCK
        case grpc.StatusCode.UNAUTHENTICATED if "node ID" in details:
            return _REVOKED
        case grpc.StatusCode.UNIMPLEMENTED | grpc.StatusCode.FAILED_PRECONDITION:
            return _VERSION.format(version=release.version()) + (f" ({details[:200]})" if details else "")
        case code:
            return f"the server refused a call ({code.name}: {details[:200]})"
