"""A kernel pack inside a bundle: checked against the network, then copied whole."""

from __future__ import annotations

from pathlib import Path

from masksam_deploy.base.errors import ExportError
from masksam_export.families.masksam.adapter_nodes import Adapters
from masksam_export.families.masksam.config import ModelConfig
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import KernelPack, read_pack, write_pack


def fitting_pack(folder: Path, config: ModelConfig, adapters: Adapters) -> KernelPack:
    """Reads a pack whose kernels an engine of this network can use.

    Raises:
        ExportError: the pack is damaged, lacks a kernel for one of the network's adapters on a GPU and type that it is
            for, or the graphs would have no node for it.
    """
    if adapters != "node":
        raise ExportError(
            f"{folder}: found adapters as '{adapters}', expected nodes, which alone can use kernels; "
            "add --adapters node, or leave out --kernels"
        )
    try:
        pack = read_pack(folder)
    except KernelError as error:
        raise ExportError(str(error)) from error
    held = {(kernel.architecture, kernel.dtype, kernel.channels) for kernel in pack.kernels if kernel.activate}
    widths = {config.adapter_dim, config.decoder_adapter_dim}
    targets = {(kernel.architecture, kernel.dtype) for kernel in pack.kernels}
    missing = sorted((*target, width) for target in targets for width in widths if (*target, width) not in held)
    if missing or not targets:
        lacks = "no kernels" if not targets else "none for {2} channels in {1} on sm_{0}".format(*missing[0])
        options = " ".join(f"--channels {width}" for width in sorted(widths))
        raise ExportError(
            f"{folder}: found {lacks}, expected kernels for adapters of {' and '.join(map(str, sorted(widths)))} "
            f"channels; build a pack that fits: masksam-kernels build -o OTHER.kernels {options}"
        )
    return pack


def copy_pack(pack: KernelPack, target: Path) -> None:
    """Writes the pack to a new folder, each file checked once more on the way.

    Raises:
        ExportError: a file changed since the pack was read, or the folder cannot be written.
    """
    files = ((kernel, pack.code(kernel), pack.ptx(kernel)) for kernel in pack.kernels)
    try:
        write_pack(target, files, compiler=pack.compiler)
    except KernelError as error:
        raise ExportError(str(error)) from error
