"""The one loop: prepare, plan, ask, keep, write."""
