"""A line between a gateway and the server that is slow, and can be cut.

    python -m benchmarks.faults.bad_link LISTEN_PORT TARGET_PORT MBIT_PER_S DELAY_MS

Carries bytes both ways on loopback, in order, at most so many a second and each so much later.
Cut (SIGUSR1) it swallows nothing and closes nothing: like a pulled cable, bytes just do not arrive
until it is repaired (SIGUSR2). A user-space line needs no privileges; what it does not imitate is
the loss of single packets.
"""

import asyncio
import signal
import sys

CHUNK = 16 * 1024


async def serve(listen: int, target: int, bytes_per_s: float, delay_s: float) -> None:
    whole = asyncio.Event()
    whole.set()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, whole.clear)
    loop.add_signal_handler(signal.SIGUSR2, whole.set)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        free_at = loop.time()
        underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)

        async def deliver() -> None:
            while True:
                at, data = await underway.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                await whole.wait()
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        delivering = asyncio.create_task(deliver())
        try:
            while data := await reader.read(CHUNK):
                free_at = max(free_at, loop.time()) + len(data) / bytes_per_s
                await asyncio.sleep(max(0.0, free_at - loop.time()))
                await underway.put((loop.time() + delay_s, data))
        except ConnectionError:
            pass
        await underway.put((loop.time() + delay_s, b""))
        await asyncio.gather(delivering, return_exceptions=True)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await whole.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    async with await asyncio.start_server(connect, "127.0.0.1", listen) as server:
        await server.serve_forever()


def main() -> None:
    listen, target, mbit, delay_ms = sys.argv[1:5]
    asyncio.run(serve(int(listen), int(target), float(mbit) * 1e6 / 8, float(delay_ms) / 1000))


if __name__ == "__main__":
    main()
