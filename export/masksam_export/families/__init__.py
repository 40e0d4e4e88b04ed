"""Families of networks: one folder each, found through the entry-point group `masksam_deploy.families`."""
