"""The oracle: a naive batchrun, a server with seeded faults, and whole lives of jobs that hold the real one to it."""
