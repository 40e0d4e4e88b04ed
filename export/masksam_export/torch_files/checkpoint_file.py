"""A checkpoint file that was read once: its content, its hash, and the weights in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.torch_files.safe_load import load_with_digest
from masksam_export.torch_files.state_dict import named_tensors

WEIGHT_KEYS = ("network_weights", "state_dict", "model_state_dict", "model")
"""Where trainers keep the weights: nnU-Net, Lightning and MONAI, many others. Otherwise the file is a state dict."""


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint, which is treated as hostile: nothing in it was executed.

    Attributes:
        path: the file.
        content: the dict that it holds; see `safe_load.load_with_digest`.
        sha256: hash of the file.
    """

    path: Path
    content: Mapping[Any, Any]
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> CheckpointFile:
        """Read a file.

        Raises:
            CheckpointError: no file, unsafe or damaged.
        """
        source = Path(path)
        content, digest = load_with_digest(source)
        return cls(source, content, digest)

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return one_line(self.path.name)

    def weights(self, expected: str) -> dict[str, Tensor]:
        """The state dict, without the prefixes that wrappers add.

        Args:
            expected: which files have one, for messages.

        Raises:
            CheckpointError: there is none, it is empty, or holds other things than tensors.
        """
        key = next((key for key in WEIGHT_KEYS if key in self.content), None)
        state: object = self.content if key is None else self.content[key]
        what = f"checkpoint '{self.name}'" + ("" if key is None else f", '{key}',")
        if state == {}:
            raise CheckpointError(f"{what} is empty; expected {expected}")
        return named_tensors(state, what, expected)
