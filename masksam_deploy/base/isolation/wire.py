"""Messages between this process and a worker: JSON objects of bounded size, each behind its length.

Nothing that a worker says is trusted: it may have been taken over by the file that it reads. So there is no pickle, and
whoever takes a message checks every value in it.
"""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import IO, TypeAlias

Message: TypeAlias = dict[str, object]

LONGEST = 2**20
"""Bytes of a message: enough for the longest error and for a few thousand file names."""
_LENGTH = struct.Struct("<I")


class WireError(Exception):
    """The other side ended, or said something that is no message."""


class Wire:
    """Both directions of a connection.

    Args:
        reader, writer: binary files; may be one.
    """

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            WireError: nobody listens any more, or the message is too long.
        """
        content = json.dumps(message).encode("ascii")
        if len(content) > LONGEST:
            raise WireError(f"a message of {len(content)} bytes")
        try:
            self._writer.write(_LENGTH.pack(len(content)) + content)
            self._writer.flush()
        except (OSError, ValueError) as error:
            raise WireError("the connection is closed") from error

    def receive(self) -> Message:
        """Wait for one message.

        Raises:
            WireError: the connection ended, or what came is no message.
        """
        try:
            length = _LENGTH.unpack(self._exactly(_LENGTH.size))[0]
            if length > LONGEST:
                raise WireError(f"a message of {length} bytes")
            content: object = json.loads(self._exactly(length))
        except (OSError, ValueError, RecursionError) as error:
            raise WireError("no message") from error
        if not isinstance(content, dict):
            raise WireError("no message")
        return content

    def close(self) -> None:
        """Close both directions."""
        for file in (self._writer, self._reader):
            with suppress(OSError):  # what was not sent is of no use to anyone now
                file.close()

    def _exactly(self, count: int) -> bytes:
        content = self._reader.read(count)
        if len(content) != count:
            raise WireError("the connection ended")
        return content
