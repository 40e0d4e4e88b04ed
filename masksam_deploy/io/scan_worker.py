"""The worker: reads one scan for another process, within limits, and ends.

It is asked twice: to open a path (headers, checks, grid), and to read the voxels into shared memory.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.base.isolation.limits import limit_worker
from masksam_deploy.base.isolation.shared import map_shared
from masksam_deploy.base.isolation.wire import Message, Wire, WireError
from masksam_deploy.base.text import one_line
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.scan_facts import facts_of
from masksam_deploy.io.scan_limits import DECODING_MEMORY, HEADER_MEMORY, seconds_to_decode, seconds_to_open

PRELOAD = (
    "masksam_deploy.io.open_channel",
    "numpy.ma",
    "pydicom.dataset",
    "pydicom.encaps",
    "pydicom.filereader",
)
"""Also what readers import on first use."""
_MOST_TOLD = 1000
"""Letters of an error that nobody foresaw."""


def serve(wire: Wire) -> None:
    """Answer what is asked about one scan, until the other side has what it wants, or leaves."""
    channel: Channel | None = None
    try:
        while True:
            request = wire.receive()
            try:
                if channel is None:
                    channel = _opened(request)
                    wire.send(facts_of(channel.geometry, channel.warnings))
                else:
                    _read(channel, request)
                    wire.send({"done": True})
                    return
            except (WireError, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  whatever a file makes the libraries raise is a refusal
                wire.send(_told(error))
                return
    except WireError:
        return


def _opened(request: Message) -> Channel:
    # Imported here, so that `limits` count from a worker that has loaded all libraries.
    from masksam_deploy.io.open_channel import open_channel

    path = Path(os.fsdecode(bytes.fromhex(str(request["path"]))))
    limit_worker(HEADER_MEMORY, seconds_to_open(_count(path)))
    return open_channel(path)


def _count(path: Path) -> int:
    try:
        return len(os.listdir(path)) if path.is_dir() else 1  # noqa: PTH208  no objects for names that are not needed
    except OSError:
        return 1  # opening it will say why


def _read(channel: Channel, request: Message) -> None:
    shape = channel.geometry.shape_zyx
    size = 4 * prod(shape)
    index, count = int(str(request["index"])), int(str(request["count"]))
    limit_worker(DECODING_MEMORY + 4 * size * (count + 1), seconds_to_decode(size))
    whole = map_shared(str(request["memory"]), (count, *shape))
    channel.read_into(whole[index])


def _told(error: BaseException) -> Message:
    """An error as a message; the text of one that nobody foresaw is cut."""
    if isinstance(error, MaskSamError):
        return {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, OSError):
        where = error.filename
        name = os.fsdecode(where) if isinstance(where, (str, bytes)) else None
        reason = one_line(error.strerror or str(error), _MOST_TOLD)
        return {"error": "OSError", "message": reason, "path": name and os.fsencode(name).hex()}
    return {"error": type(error).__name__, "message": one_line(str(error), _MOST_TOLD)}
