"""Merges of checkpoints on disk, tensor by tensor, in constant memory."""
