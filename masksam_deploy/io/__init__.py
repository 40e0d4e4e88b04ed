"""Reading scans and writing label maps. Importing this package imports SimpleITK."""

from masksam_deploy.io.read import read_volume
from masksam_deploy.io.write_labels import write_labels

__all__ = ["read_volume", "write_labels"]
