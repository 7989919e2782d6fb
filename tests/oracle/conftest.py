"""Prints what the oracle did at the end of a test run: its seed, its lives, the choices that they cover."""

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the shares of lives reported, also from the workers of pytest-xdist."""
    counted: Counter[str] = Counter()
    found: dict[str, object] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(report.user_properties)
            counted.update(properties.get("oracle_lives", {}))
            found |= {name: value for name, value in properties.items() if name in {"oracle_seed", "oracle_pairs"}}
    if not found:
        return
    words = [
        f"ORACLE_SEED={found.get('oracle_seed')}",
        f"{counted.pop('lives', 0)} lives",
        str(found.get("oracle_pairs")),
    ]
    terminalreporter.write_line("oracle: " + ", ".join(words))
