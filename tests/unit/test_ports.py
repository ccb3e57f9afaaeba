"""Ports at which ranks and hosts meet."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from score_openrlhf.platform import ports


def test_a_port_is_none_that_an_outgoing_connection_is_given():
    """EADDRINUSE ended a start-up: the port was of the kernel's range, and a connection had it when it was needed."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first < 32768:
        pytest.skip(f"this machine's outgoing connections begin at port {first}, and not at the kernel's 32768")
    for _ in range(20):
        assert 20000 + 10000 <= ports.free_port() < first


def test_forks_draw_apart():
    drawn = []
    for _ in range(2):
        random.seed(0)  # as in two forks of one process
        drawn.append([ports.free_port() for _ in range(4)])
    assert drawn[0] != drawn[1]


def test_a_taken_port_is_not_given(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        number = taken.getsockname()[1]
        monkeypatch.setattr(ports, "RANGE", range(number, number + 1))
        assert ports.free_port() != number
