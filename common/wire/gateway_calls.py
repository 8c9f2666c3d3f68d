"""Calls between a gateway and the server beside Flower's Fleet API, on the same port, with the same TLS and keys.

`Connect` is a stream that is open as long as the gateway is connected. The server sends `MESSAGE` when a message waits,
and `NOTHING` now and then; the gateway sends Flower's heartbeats. A line on which a side hears nothing for `SILENT_S`
is given up, though nothing has closed it. (gRPC's own keepalive took over a minute for that.) `Download` and `Upload`
carry the arrays of a message in pieces, from and to files, so that neither the server nor a gateway holds a model in
memory.
"""

import re

CONNECT = "/consilium.Gateway/Connect"
DOWNLOAD = "/consilium.Gateway/Download"
UPLOAD = "/consilium.Gateway/Upload"

NODE_HEADER = "consilium-node"
"""gRPC header of these calls: the Flower node that the site's key stands for."""
PROCESS_HEADER = "consilium-process"
"""gRPC header: a random name of the gateway's process. One that lost its line unnoticed by the server may connect
again at once; another gateway with the same key may not."""
SCHEMA_HEADER = "consilium-schema"
"""gRPC header of an activation: the version of the messages that the gateway understands."""
VERSION_HEADER = "consilium-version"
"""gRPC header of an activation: the version of the gateway's program, for people."""
ROUND_TRIP_HEADER = "consilium-round-trip-ms"
"""gRPC header of a heartbeat: milliseconds that the heartbeat before took, there and back, for people."""

MESSAGE, NOTHING = b"!", b"."
NOTHING_S = 5.0
"""Seconds between two signs of life on a quiet line."""
SILENT_S = 20.0
"""Seconds after which a line counts as broken. Pieces of arrays are signs of life as well."""

LINE_OPTIONS = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2 * 2**20))
"""Of gRPC, at both ends: at most so many bytes of a call wait to be read. Left alone, gRPC lets the number grow with
the speed of the line, to 100 MiB a site. 2 MiB are 160 megabits a second over a line of 100 ms, there and back."""
PIECE_BYTES = 2**19
"""Bytes of one piece of arrays: small enough to arrive within `SILENT_S` over half a megabit a second."""
INLINE_BYTES = 2**18
"""Arrays of at most so many bytes travel within their message; a download of their own would cost more."""

FILE_NAME = re.compile(r"[0-9a-f]{32}")
"""How a file of arrays is named in a message."""
