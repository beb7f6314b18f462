"""Connections, against real sockets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from millis_server.triton.connection import ConnectionFailed, ConnectionPool, HttpResponse

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}abc"


async def pool_to(handler: Handler) -> tuple[ConnectionPool, asyncio.Server]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    return ConnectionPool(f"{host}:{port}"), server


async def test_an_answer_in_pieces_is_whole_and_the_connection_is_used_again():
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        for _ in range(3):
            await reader.readuntil(b"\r\n\r\n")
            for byte in ANSWER:
                writer.write(bytes([byte]))
                await writer.drain()
        writer.close()

    pool, server = await pool_to(handle)
    for _ in range(3):
        assert await pool.request(b"GET", b"/", timeout=5) == HttpResponse(200, 2, b"{}abc")
    assert connections == 1
    pool.close()
    server.close()


async def test_a_server_that_closes_or_talks_nonsense_is_a_failed_connection():
    for reply in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"nonsense\r\n\r\n"):

        async def handle(reader, writer, reply=reply):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            writer.close()

        pool, server = await pool_to(handle)
        with pytest.raises(ConnectionFailed):
            await pool.request(b"GET", b"/", timeout=5)
        server.close()


async def test_nobody_there_is_a_failed_connection():
    pool, server = await pool_to(lambda reader, writer: asyncio.sleep(0))
    server.close()
    await server.wait_closed()
    with pytest.raises(ConnectionFailed):
        await pool.request(b"GET", b"/", timeout=5)


async def test_a_late_answer_is_never_taken_for_the_next_one():
    first = True

    async def handle(reader, writer):
        nonlocal first
        await reader.readuntil(b"\r\n\r\n")
        if first:
            first = False
            await asyncio.sleep(0.2)
            writer.write(ANSWER.replace(b"abc", b"old"))
        else:
            writer.write(ANSWER)
        await writer.drain()
        writer.close()

    pool, server = await pool_to(handle)
    with pytest.raises(TimeoutError):
        await pool.request(b"GET", b"/", timeout=0.05)
    await asyncio.sleep(0.3)
    assert (await pool.request(b"GET", b"/", timeout=5)).body == b"{}abc"
    pool.close()
    server.close()
