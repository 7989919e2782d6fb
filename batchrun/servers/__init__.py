"""Servers of our own; they import nothing of batchrun."""
