"""The torch side of masksam-deploy: the network, its checkpoints, and the exporter. Needs the `export` extra."""
