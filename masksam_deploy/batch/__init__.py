"""Many scans through one network, and the ledger of what became of them."""
