"""Where a key or value of the job file stands, by its path in the job."""

from batchrun.job.yamltext import Items, Node, Scalar, Table

Path = tuple[str | int, ...]


def dotted(path: Path) -> str:
    """Give a path as people write it: `prompt.messages[0].role`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


class Positions:
    """Where things stand in one job file; lines and columns are 1-based."""

    __slots__ = ("_root",)

    def __init__(self, root: Table) -> None:
        self._root = root

    def locate(self, path: Path, line_in_value: int = 0) -> tuple[int, int]:
        """Give line and column of what stands at a path, or of the nearest thing above it that the file has.

        For a text it is the value, and for `line_in_value` (from 0) that line of it where the file shows the value
        line by line (below a `|`); for anything else it is the key. An empty path gives line 1.
        """
        key, node, reached = self._find(path)
        if not isinstance(node, Scalar) or not reached:
            return (key.line, key.column) if key else (node.line, node.column) if path else (1, 1)
        if node.content is None:
            return node.line, node.column
        line, column = node.content
        return line + (line_in_value if node.by_line else 0), column

    def key(self, path: Path) -> tuple[int, int]:
        """Give line and column of a key."""
        key, node, _ = self._find(path)
        place = key or node
        return place.line, place.column

    def node(self, path: Path) -> Node | None:
        """Give what stands at a path; None where nothing does."""
        _, node, reached = self._find(path)
        return node if reached else None

    def _find(self, path: Path) -> tuple[Scalar | None, Node, bool]:
        """Give the last key, the last node on the way and whether it is the path's end."""
        key: Scalar | None = None
        node: Node = self._root
        for step in path:
            if isinstance(node, Table) and isinstance(step, str) and step in node.entries:
                key, node = node.entries[step]
            elif isinstance(node, Items) and isinstance(step, int) and step < len(node.values):
                key, node = None, node.values[step]
            else:
                return key, node, False
        return key, node, True
