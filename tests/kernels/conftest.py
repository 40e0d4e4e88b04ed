"""Without a GPU, kernels run in Triton's interpreter; builds for real GPUs run in processes of their own."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks at it when a kernel is defined
