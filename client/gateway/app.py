"""The gateway's Flower app: unpack, forward, pack; no logic.

Flower ships this file from the server to every site and runs it in the gateway. Of the hospital it reaches
only the trainer's socket: it never imports torch and sees no image. It cannot make the trainer run code,
because the trainer only understands plans.
"""

import uuid
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.gateway.link import SocketLink
from common import log, wire
from common.errors import SiteFailure, WireError
from common.wire import codec

app = ClientApp()


_ADVICE: dict[wire.ErrorKind, str] = {
    "unreachable": "the site's trainer did not answer its gateway; the gateway's log has the reason",
    "message": "the site's gateway could not pass on a message; install the same version on all sides",
    "internal": "an unexpected error in the site's gateway; its log has the details",
}


@app.query()
def answer(message: Message, context: Context) -> Message:
    """Hand a plan to this site's trainer and its answer to the server."""
    log.start()
    if codec.is_probe(message.content):
        return Message(codec.probe(), reply_to=message)
    try:
        link = SocketLink(Path(str(context.node_config["trainer"])))
        reply = link.ask(codec.records_to_bytes(message.content), timeout_s=message.metadata.ttl)
        return Message(codec.bytes_to_records(reply), reply_to=message)
    except Exception as error:  # Flower would send the text of anything that escapes to the server
        case, kind = uuid.uuid4().hex[:8], _kind(error)
        log.logger.exception("case %s", case)
        return Message(codec.refuse(message.content, kind, case, _ADVICE[kind]), reply_to=message)


def _kind(error: Exception) -> wire.ErrorKind:
    match error:
        case SiteFailure():
            return "unreachable"
        case WireError():
            return "message"
        case _:
            return "internal"
