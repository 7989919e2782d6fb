"""The harness that kills, starves and damages whole runs; `python -m crash` in tests/ runs it in full."""
