#!/usr/bin/env python3
"""A WebSocket client for people with nothing but Python: sends each line of standard input as a text frame and prints
each frame that comes. Not for programs: no TLS, no fragments, answers no ping of the WebSocket layer.

Usage: ws.py http://HOST:PORT/PATH [--for SECONDS]
"""

import base64
import os
import select
import socket
import sys
import time
from urllib.parse import urlsplit


def read_exactly(conn, count):
    data = b""
    while len(data) < count:
        part = conn.recv(count - len(data))
        if not part:
            sys.exit("the server has closed the connection")
        data += part
    return data


def connect(url):
    conn = socket.create_connection((url.hostname, url.port or 80))
    key = base64.b64encode(os.urandom(16)).decode()
    conn.sendall(
        f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(conn, 1)
    if b" 101 " not in head.splitlines()[0]:
        sys.exit(head.decode())
    return conn


def send(conn, text):
    body = text.encode()
    size = len(body)
    mask = os.urandom(4)
    head = bytes([0x81, 0x80 | size]) if size < 126 else bytes([0x81, 0xFE]) + size.to_bytes(2, "big")
    conn.sendall(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(body)))


def receive(conn):
    first, size = read_exactly(conn, 2)
    if size >= 126:
        size = int.from_bytes(read_exactly(conn, 2 if size == 126 else 8), "big")
    body = read_exactly(conn, size)
    if first & 0x0F == 8:
        sys.exit(f"closed: {int.from_bytes(body[:2], 'big')} {body[2:].decode()}")
    if first & 0x0F == 1:
        print(body.decode(), flush=True)


def main():
    arguments = sys.argv[1:]
    if not arguments:
        sys.exit(__doc__)
    end = time.monotonic() + float(arguments[2]) if arguments[1:2] == ["--for"] else None
    conn = connect(urlsplit(arguments[0]))
    sources = [conn, sys.stdin]
    while end is None or time.monotonic() < end:
        ready, _, _ = select.select(sources, [], [], 0.1)
        if conn in ready:
            receive(conn)
        elif sys.stdin in ready:
            line = os.read(0, 65536).decode()
            if not line:
                sources.remove(sys.stdin)
            for frame in line.splitlines():
                send(conn, frame)


main()
