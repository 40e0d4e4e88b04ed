"""Reading a scan asks no network, and neither does importing what reads it: pydicom 3.0.0 downloaded a file then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

READ = """
import os, sys
def hear(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(9)
sys.addaudithook(hear)
import pydicom  # here too, not only in the process that reads
from masksam_deploy.io import read_volume
print(read_volume(sys.argv[1]).array.ndim)
"""


def test_reading_asks_no_network(data: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", READ, data / "dicom" / "head_flipped"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr, result.stdout.strip()) == (0, "", "4")
