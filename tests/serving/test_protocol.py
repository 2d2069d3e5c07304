"""Requests that offer HTTP/2 are read to their ends."""

import socket
import threading
import time

import pytest

from elq_jax.serving.protocol import http_protocol, without_offer

uvicorn = pytest.importorskip("uvicorn", reason="the service needs the extra [serve]")
pytest.importorskip("httptools", reason="the service needs the extra [serve]")

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
BODY = b"POST x\r\nUpgrade: h2c\r\n\r\n" + b"y" * 20


async def echo(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address():
    config = uvicorn.Config(
        echo, http=http_protocol(), port=0, lifespan="off", ws="none", log_level="error"
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("offer", [b"", OFFER])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_the_body_arrives(address, offer, in_pieces):
    head = b"POST / HTTP/1.1\r\nHost: x\r\n" + offer + b"Content-Length: %d\r\n\r\n" % len(BODY)
    with socket.create_connection(address, timeout=20) as client:
        for _ in range(2):  # The connection is kept.
            if in_pieces:
                client.sendall(head)
                time.sleep(0.05)
                client.sendall(BODY)
            else:
                client.sendall(head + BODY)
            answer = b""
            while not answer.endswith(b"y" * 20):
                answer += client.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"\r\n\r\n" + BODY)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\nupgrade:h2c\r\nA: b\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nA: b\r\nUpgrade: h2c\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nX-Upgrade: h2c\r\n\r\n", None),
        (b"\r\nUpgrade: h2c\r\n\r\n", None),
        (b"", None),
    ],
)
def test_what_is_left_out(data, expected):
    assert without_offer(data) == (data if expected is None else expected)
