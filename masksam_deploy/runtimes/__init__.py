"""Inference runtimes: one file each, behind the `Session` protocol."""

from masksam_deploy.runtimes.base import Device, Network, Session
from masksam_deploy.runtimes.chain import GraphChain, onnxruntime_opener, open_chain, open_stages

__all__ = ["Device", "GraphChain", "Network", "Session", "onnxruntime_opener", "open_chain", "open_stages"]
