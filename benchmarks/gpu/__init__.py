"""What a GPU does with the kernels and with whole windows: see README.md beside this file."""

import os

if os.environ.get("DRY") == "1":
    # Triton reads it when it is imported, before any module of this folder.
    os.environ.setdefault("TRITON_INTERPRET", "1")
