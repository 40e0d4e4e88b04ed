"""Bundles: the manifest, its rules, the directory and its packed form, and the look at graphs before they run."""
