"""Parts of a network that become one graph each."""

from __future__ import annotations

from torch import nn

from masksam_deploy.bundle.manifest import Port


class GraphPart(nn.Module):
    """One graph to be: a name, ports, and a forward over them in order.

    Every port leads with the dynamic batch B.
    """

    name: str
    variadic = False
    """Whether `forward` takes its inputs as one `*args`."""

    def __init__(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        super().__init__()
        self.inputs = inputs
        self.outputs = outputs


def port(name: str, *sizes: int) -> Port:
    """A float32 port of these sizes after the batch."""
    return Port(name=name, dtype="float32", shape=("B", *sizes))


def release(module: nn.Module) -> None:
    """Free a network's weights, whoever still refers to them; it cannot be used afterwards.

    torch's exporter keeps references to what it traced. Only weights loaded as `owned` can be freed this way.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(0)
    module.to(device="meta")
