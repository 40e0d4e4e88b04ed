"""Imported once by the server that forks workers: each of them then has ONNX Runtime."""

from __future__ import annotations

from contextlib import suppress

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.runtimes.onnxruntime.library import import_runtime

with suppress(MaskSamError):  # the worker that needs it will say what is wrong
    import_runtime()
