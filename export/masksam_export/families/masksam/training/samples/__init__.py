"""Public sample data made into nnU-Net raw data sets."""
