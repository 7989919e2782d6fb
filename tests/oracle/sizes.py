"""The product's own sizes and its clock, by name: a life sets them in its process before the command line starts.

Nothing else of the oracle knows names of the package. A name that is gone fails loudly: correct it here.
"""

import functools
import itertools
import os
import random
import sys
import time
from types import ModuleType
from typing import Any

from oracle.clock import Clock, Loop

CONSTANTS = {
    "batchrun.runner.outputs": ("OUTPUT_ROWS",),
    "batchrun.checkpoint.plan": ("BATCH", "LARGEST_BATCH"),
    "batchrun.checkpoint.writer": ("GROUP",),
    "batchrun.prepare.plan": ("YOUNG",),
    "batchrun.table.text": ("KEPT",),
    "batchrun.table.write": ("_ROW_GROUP",),
    "batchrun.checkpoint.files": ("RESERVE",),
    "batchrun.runner.asking": ("TICK",),
}
"""Module and the names in it that a life may set."""

DEFAULTS = {"BATCH_ROWS": ("batchrun.table.read", "Rows.batches", "size")}
"""Sizes that are the default of a parameter."""

CLOCK = ("batchrun.runner.work", "REAL_TIME")
"""The one clock of a run's waits."""

POOL = ("batchrun.runner.pool", "Pool")
"""What asks: its first arguments are the coroutine function that sends one request, and what keeps outcomes."""

LOOP = ("uvloop", "new_event_loop")
"""What makes a run's event loop."""

CHEAP = {"RESERVE": 2**18, "TICK": 60.0}
"""What every life sets only to save time: a small reserve, and one look at the progress in a minute of waiting."""

UNUSED = {"servers", "__main__", "pdf", "httpx"}
"""Modules that no life needs; what is not loaded need not be copied for each child."""

SIZES = ("OUTPUT_ROWS", "BATCH", "GROUP", "KEPT", "_ROW_GROUP", "BATCH_ROWS")
"""What the lives draw; the other constants follow from them."""


def module(name: str) -> ModuleType:
    """Return a loaded module of the package; LookupError says where to correct its name."""
    try:
        return sys.modules[name]
    except KeyError:
        raise LookupError(f"{name} is not a module of the package any more: correct {__file__}") from None


def attribute(holder: object, name: str) -> Any:  # noqa: ANN401  (whatever the package holds there)
    """Return an attribute; LookupError says where to correct its name."""
    if not hasattr(holder, name):
        raise LookupError(f"{holder} has no {name} any more: correct {__file__}")
    return getattr(holder, name)


def check() -> None:
    """Raise LookupError for the first name that does not exist."""
    for constant in itertools.chain.from_iterable(CONSTANTS.values()):
        holders(constant)
    for name, function, parameter in DEFAULTS.values():
        _set_default(name, function, parameter, None)
    for name, found in (CLOCK, POOL, LOOP):
        attribute(module(name), found)


def apply(sizes: dict[str, Any], days: int) -> None:
    """Set sizes in every module that holds the constant, let waits pass at once, and move the calendar on."""
    sizes = sizes | CHEAP
    for constant in itertools.chain.from_iterable(CONSTANTS.values()):
        for holder in holders(constant) if constant in sizes else ():
            setattr(holder, constant, sizes[constant])
    for label, (name, function, parameter) in DEFAULTS.items():
        if label in sizes:
            _set_default(name, function, parameter, sizes[label])
    real = time.time
    later = lambda: real() + days * 86_400  # noqa: E731  (two lines)
    time.time = later
    clock = Clock()
    setattr(module(LOOP[0]), LOOP[1], lambda: Loop(clock))
    pool = attribute(module(POOL[0]), POOL[1])
    first = pool.__init__

    def begin(self: object, send: Any, keep: Any, *others: object, **named: object) -> None:  # noqa: ANN401
        clock.disk_is_behind = lambda: keep.is_full
        first(self, clock.counted(send), keep, *others, **named)

    pool.__init__ = begin
    # The record is frozen and is a default argument in many places: it is changed where it stands.
    times = attribute(module(CLOCK[0]), CLOCK[1])
    for name, value in (("clock", lambda: clock.now), ("wall", later), ("jitter", random.Random(days).random)):  # noqa: S311
        attribute(times, name)
        object.__setattr__(times, name, value)


@functools.cache
def holders(constant: str) -> list[ModuleType]:
    """Return the modules of the package that hold a constant: its own, and those that imported it.

    Found once, before the first fork: a look at each module of a child would copy the pages of them all.
    """
    home = next(module(name) for name, constants in CONSTANTS.items() if constant in constants)
    value = attribute(home, constant)
    loaded = [one for name, one in sys.modules.items() if name.split(".")[0] == "batchrun"]
    return [one for one in loaded if one is home or getattr(one, constant, None) is value]


def _set_default(name: str, path: str, parameter: str, value: object) -> None:
    function: Any = module(name)
    for part in path.split("."):
        function = attribute(function, part)
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    keyword = function.__kwdefaults__ or {}
    if parameter in keyword:
        if value is not None:
            function.__kwdefaults__ = {**keyword, parameter: value}
        return
    defaults = dict(zip(names[::-1], (function.__defaults__ or ())[::-1], strict=False))
    if parameter not in defaults:
        raise LookupError(f"{path} has no default for {parameter} any more: correct {__file__}")
    if value is not None:
        function.__defaults__ = tuple({**defaults, parameter: value}[one] for one in names if one in defaults)


def load_all() -> None:
    """Import all of the package that a run, an export or a report needs."""
    import importlib  # noqa: PLC0415  (only the process that forks needs it)
    import pkgutil  # noqa: PLC0415

    package = importlib.import_module("batchrun")
    for found in pkgutil.walk_packages(package.__path__, "batchrun."):
        parts = found.name.split(".")
        if not UNUSED & set(parts) and not parts[-1].startswith("ray"):
            importlib.import_module(found.name)
    importlib.import_module("batchrun.__main__")
    for name in ("pyreqwest.client", "xlsxwriter", "python_calamine"):
        importlib.import_module(name)
    # These compile patterns at their first use.
    importlib.import_module("ruamel.yaml").YAML().compose("a: [1, 'b', null]")
    importlib.import_module("jinja2").Environment().parse("{{ a }}")


def threads() -> list[str]:
    """Return the names of this process's threads, without those that may be lost in a fork.

    Polars starts a janitor of spilled files at import; it is idle, and what forks has spilled nothing.
    """
    names = []
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208  (names, not paths)
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8") as file:  # noqa: PTH123
            names.append(file.read().strip())
    return [name for name in names if not name.startswith("polars-ooc")]
