"""What all rooms share: errors, text, files, memory, threads, and the isolation of what untrusted files can crash."""
