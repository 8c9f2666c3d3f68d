"""What the words of gRPC and Flower mean for a site."""

import json

import grpc
import pytest
from flwr.supercore.error import ApiErrorCode

from client.gateway.connection import CallFailed
from client.gateway.reasons import reason

CODE = grpc.StatusCode
FLOWERS = json.dumps(
    {"code": ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "public_message": "Failed to activate SuperNode"}
)


@pytest.mark.parametrize(
    ("code", "said", "means"),
    [
        (CODE.FAILED_PRECONDITION, FLOWERS, "does not take this site's key, SHA256:x"),
        (CODE.UNAUTHENTICATED, "Invalid timestamp", "refused this machine's clock"),
        (CODE.UNAUTHENTICATED, "Invalid node ID", "it was revoked, or the server was set up again"),
        (CODE.UNAVAILABLE, "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "does not fit ca.pem"),
        (
            CODE.UNAVAILABLE,
            "failed to connect to all addresses",
            "cannot be reached, or the line went silent",
        ),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", "cannot be reached, or the line went silent"),
        (CODE.UNIMPLEMENTED, "Method not found!", "of another version than this gateway"),
        (CODE.FAILED_PRECONDITION, "another version of Consilium: found ...", "found ..."),
        (CODE.UNAUTHENTICATED, "Invalid signature", "UNAUTHENTICATED: Invalid signature"),
        (CODE.INTERNAL, "", "the server refused a call (INTERNAL: )"),
    ],
)
def test_a_failed_call_is_explained(code: grpc.StatusCode, said: str, means: str) -> None:
    assert means in reason(CallFailed(code, said), "SHA256:x")


def test_a_long_word_of_the_server_is_cut() -> None:
    assert len(reason(CallFailed(CODE.INTERNAL, "x" * 5000), "SHA256:x")) < 300
