"""The ledger: what was found, who works on it, and what was concluded."""
