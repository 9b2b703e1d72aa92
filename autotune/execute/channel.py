"""Messages between a coordinator and a worker: each is one JSON document, sent over a private socket."""

import json
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from autotune.errors import WorkerError

MESSAGE_LIMIT_BYTES = 256 * 1024 * 1024
HEADER = struct.Struct("!4sI")
MARK = b"ATm1"
"""Begins every message, so that anything else that is written to the socket is recognised at once."""

IDENTITY = "identity"
"""Names in each message of a step the step that it comes from."""

Message = Mapping[str, Any]
"""One JSON document, as it was sent or received."""


class ChannelClosed(WorkerError):
    """The other end is gone."""


class NotOurs(ChannelClosed):
    """The other end sent what no step of ours sends: nothing more is received from it."""


class Channel:
    """One end of a socket pair; each message is a mark, a length and that many bytes of JSON.

    ``sign`` is added to every message that is sent from here. ``purpose`` says what the step at this end works for; it
    is shown to others that wait for its device.
    """

    def __init__(self, end: socket.socket, sign: Mapping[str, str] | None = None) -> None:
        self._end = end
        self.sign = dict(sign or {})
        self.purpose = ""
        self._buffer = bytearray()

    @classmethod
    def from_fd(cls, fd: int) -> "Channel":
        """Take over an inherited descriptor."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._end.fileno()

    def send(self, message: Mapping[str, object]) -> None:
        """Send one message; raises ChannelClosed if the other end is closed."""
        data = json.dumps({**message, **self.sign}).encode()
        try:
            self._end.sendall(HEADER.pack(MARK, len(data)) + data)
        except OSError as error:
            raise ChannelClosed("the other end of a worker's channel is closed", found=str(error)) from error

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message, or ``None`` after ``timeout_s`` seconds; raises ChannelClosed at the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._complete()) is None:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._end], [], [], wait)[0]:
                return None
            self._read()
        return message

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def _read(self) -> None:
        try:
            data = self._end.recv(1 << 20)
        except OSError as error:
            raise ChannelClosed("a worker's channel broke", found=str(error)) from error
        if not data:
            raise ChannelClosed("a worker's channel ended")
        self._buffer += data

    def _complete(self) -> Message | None:
        if len(self._buffer) < HEADER.size:
            return None
        mark, length = HEADER.unpack_from(self._buffer)
        if mark != MARK or length > MESSAGE_LIMIT_BYTES:
            raise NotOurs("a worker sent no message of ours", found=repr(bytes(self._buffer[:40])))
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        try:
            message = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise NotOurs("a worker sent no message of ours", found=str(error)) from error
        if not isinstance(message, dict):
            raise NotOurs("a worker sent no message of ours", found=type(message).__name__)
        return message
