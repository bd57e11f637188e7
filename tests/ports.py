"""A port that nobody else takes between the moment it is found and the moment it is listened on."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """Give a port below those that the system hands out by itself (32768 and up): another test that asks for
    any free port, or a client that connects, never gets it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
