"""The worker: where queue, ledger and model meet."""
