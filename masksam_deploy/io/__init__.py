"""Reading scans and writing label maps. Importing this package imports SimpleITK."""

from masksam_deploy.io.labels import write_labels
from masksam_deploy.io.scan import read_volume

__all__ = ["read_volume", "write_labels"]
