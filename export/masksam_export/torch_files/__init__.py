"""Reading torch files that may be hostile, without torch's unpickler."""
