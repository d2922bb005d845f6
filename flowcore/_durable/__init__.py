"""Durable runs: the claim, the checkpoints, the lease, and the takeover of a run that has no live owner."""
