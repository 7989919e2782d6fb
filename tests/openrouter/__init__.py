"""A server of faults that shares no code with batchrun."""
