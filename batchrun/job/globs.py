"""Which files a glob of `input.path` means, before they exist."""

from fnmatch import fnmatchcase
from pathlib import PurePath


def matches(path: str, pattern: str) -> bool:
    """Check whether a glob means a file, which need not exist; only `**` crosses folders, and may stand for none."""
    if "**" not in pattern:  # PurePath.match reads ** as *, and fnmatch lets * cross folders
        return PurePath(path).match(pattern)
    head, _, rest = pattern.partition("**/")
    return fnmatchcase(path, pattern) or (bool(rest) and matches(path, head + rest))
