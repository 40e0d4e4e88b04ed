"""The version of this package, where any module may read it without importing the rest."""

__version__ = "0.1.0"
