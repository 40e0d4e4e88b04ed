"""What the kernels refuse."""


class KernelError(Exception):
    """A kernel cannot run, be built or be loaded; the message says what was found and what to do."""
