"""The gateway: one process that stays connected to the server and passes its messages on to this site's trainer.

One thread keeps the connection and takes the messages that wait; another works on them, one after the other. So
a site stays connected while its trainer works, however long that takes. A message is confirmed only when its answer
has been handed over. If the line breaks, the answer is handed over on the next one; if this process is killed, the
server offers the message again, and the trainer answers a plan that it knows from memory.

An unreachable server, or one that does not know the key yet, is tried again without end, because the fault may be
fixed elsewhere. The log gives the reason in plain words.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Message

from client.gateway import forward, reasons
from client.gateway.connection import CallFailed, Connection, MessageGone, Offer, reply
from client.gateway.link import SocketLink
from client.gateway.settings import FILE, GatewayConfig, require_files
from common import keys, log
from common.errors import WireError
from common.network import proxies
from common.polling import POLL_S

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
"""Pauses before the server is tried again; each is twice the one before."""
TRIES = 5
"""Connections on which an answer is tried. The server then offers the message again, if it still wants an answer."""
SPEAK_S = 60.0
"""Pause between two lines of the log with the same reason."""


def run(config: GatewayConfig, until: Path | None = None) -> None:
    """Be this site's gateway until this process is asked to end, or the file `until` appears.

    Raises ConfigError.
    """
    require_files(config)
    fingerprint = keys.fingerprint_of_private(config.key)
    through = "" if config.proxy is None else f" through the proxy {proxies.shown(config.proxy)}"
    log.event(f"{config.site}: the gateway connects to {config.server}{through}")
    for name, place in proxies.named(os.environ).items():
        log.event(f"{name} ({place}) is not used; a proxy to the server is named as `proxy` in {FILE}")
    relay = Relay(lambda: Connection(config), SocketLink(config.socket), fingerprint)
    with proxies.of_this_process(config.proxy):
        relay.start()
        try:
            while until is None or not until.exists():
                time.sleep(POLL_S)
        finally:
            relay.stop()


class Relay:
    """The two threads of a gateway, and what they share."""

    def __init__(self, connect: Callable[[], Connection], link: SocketLink, fingerprint: str) -> None:
        self._connect, self._link, self._fingerprint = connect, link, fingerprint
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        """None while there is no connection; guarded by `_changed`, as is the next one."""
        self._in_hand: set[str] = set()
        self._offers: queue.SimpleQueue[Offer] = queue.SimpleQueue()

    def start(self) -> None:
        """Start both threads."""
        for name, target in (("connection", self._keep), ("messages", self._work)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def stop(self) -> None:
        """Leave the server."""
        self._stopped.set()
        with self._changed:
            connection = self._connection
        if connection is not None:
            connection.close()

    # --- the connection ------------------------------------------------------------------

    def _keep(self) -> None:
        pause_s, said, said_at = FIRST_PAUSE_S, "", 0.0
        while not self._stopped.is_set():
            worked, why = self._stay_connected()
            if self._stopped.is_set():
                return
            pause_s = FIRST_PAUSE_S if worked else min(2 * pause_s, LONGEST_PAUSE_S)
            now = time.monotonic()
            if worked or why != said or now - said_at > SPEAK_S:
                log.warn(f"{why}; trying again in {pause_s:g} s")
                said, said_at = why, now
            self._stopped.wait(pause_s)

    def _stay_connected(self) -> tuple[bool, str]:
        """Connect and take messages as long as that works. Returns whether it did, and why it ended."""
        connection, worked = None, False
        try:
            connection = self._connect()
            connection.activate()
            self._set_connection(connection)
            with self._changed:
                in_hand = set(self._in_hand)
            for _ in connection.wakes(in_hand):
                if not worked:
                    log.event("connected to the server")
                    worked = True
                self._take(connection)
        except CallFailed as failed:
            return worked, reasons.reason(failed, self._fingerprint)
        except Exception as error:  # a gateway never gives up
            log.logger.exception("the connection failed")
            return worked, f"the connection failed ({type(error).__name__})"
        finally:
            self._set_connection(None)
            if connection is not None:
                connection.cut()
        return worked, "the server ended the connection"

    def _take(self, connection: Connection) -> None:
        while (offer := connection.next_offer()) is not None:
            with self._changed:
                is_new = offer.message_id not in self._in_hand
                self._in_hand.add(offer.message_id)
            if is_new:
                self._offers.put(offer)

    def _set_connection(self, connection: Connection | None) -> None:
        with self._changed:
            self._connection = connection
            self._changed.notify_all()

    # --- messages ------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            offer = self._offers.get()
            try:
                self._answer(offer)
            except MessageGone as gone:
                log.warn(f"a message is put aside: {gone}")
            except Exception:  # one message must not end the gateway
                log.logger.exception("a message cannot be answered")
            finally:
                with self._changed:
                    self._in_hand.discard(offer.message_id)

    def _answer(self, offer: Offer) -> None:
        """Answer one message, on as many connections as it takes. Raises MessageGone."""
        started = time.monotonic()
        answer, lost, until, failures = None, None, started + offer.ttl, 0
        while True:
            connection = self._newer_than(lost, until)
            try:
                if answer is None:
                    answer = self._make_answer(offer, connection, until)
                connection.send(offer, answer, time.monotonic() - started)
            except CallFailed as failed:
                failures += 1
                why = reasons.reason(failed, self._fingerprint)
                if not failed.is_of_the_line or failures == TRIES:
                    raise MessageGone(why) from failed
                log.warn(f"an answer waits for the next connection: {why}")
                connection.cut()  # where only one call failed, a new connection is made as well
                lost = connection
            else:
                return

    def _make_answer(self, offer: Offer, connection: Connection, until: float) -> Message:
        content = connection.content(offer)
        try:
            return reply(offer, forward.answer(content, self._link, connection, until - time.monotonic()))
        except WireError:
            log.logger.exception("a message is not Consilium's")
            return reply(offer, None)

    def _newer_than(self, lost: Connection | None, until: float) -> Connection:
        """The connection, once there is another than the one that was lost. Raises MessageGone after `until`."""
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: self._connection is not None and self._connection is not lost,
                max(0.0, until - time.monotonic()),
            )
            if not is_there or self._connection is None:
                raise MessageGone("the server was not reached while it waited for the answer")
            return self._connection
