"""`python -m masksam_kernels`."""

from masksam_kernels.cli import main

main()
