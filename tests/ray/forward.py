"""Run inside a network namespace: passes connections to sockets of the file system on to ports there.

forward.py SOCKET=PORT ...
"""

import asyncio
import contextlib
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(path: str, port: int) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back), pump(there, writer))

    server = await asyncio.start_unix_server(accept, path)
    await server.serve_forever()


async def main() -> None:
    pairs = [argument.rsplit("=", 1) for argument in sys.argv[1:]]
    await asyncio.gather(*(serve(path, int(port)) for path, port in pairs))


if __name__ == "__main__":
    asyncio.run(main())
