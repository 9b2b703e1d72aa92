import os
import socket

import pytest

from autotune.execute.channel import HEADER, MARK, MESSAGE_LIMIT_BYTES, Channel, ChannelClosed, NotOurs


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def test_messages_arrive_in_order_with_the_signature_of_their_sender(ends):
    ours, theirs = ends
    other = Channel(theirs, {"identity": "me"})
    other.send({"turn": "a"})
    other.send({"turn": "ü"})
    assert [ours.receive(1.0), ours.receive(1.0), ours.receive(0.0)] == [
        {"turn": "a", "identity": "me"}, {"turn": "ü", "identity": "me"}, None
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"some words that a library printed",
        b"\x00\x00\x00\x08{}{}{}{}",
        HEADER.pack(MARK, MESSAGE_LIMIT_BYTES + 1),
        HEADER.pack(MARK, 3) + b"[1]",
        HEADER.pack(MARK, 3) + b"\xff\xfe\xfd",
        HEADER.pack(MARK, 100_000) + b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_told_at_once(ends, data):
    ours, theirs = ends
    theirs.sendall(data)
    with pytest.raises(NotOurs):
        ours.receive(5.0)


def test_half_a_message_is_no_message(ends):
    ours, theirs = ends
    theirs.sendall(HEADER.pack(MARK, 2) + b"{")
    assert ours.receive(0.0) is None
    theirs.close()
    with pytest.raises(ChannelClosed):
        ours.receive(1.0)


def test_random_bytes_are_no_message(ends):
    ours, theirs = ends
    theirs.sendall(os.urandom(64))
    with pytest.raises(NotOurs):
        ours.receive(5.0)
