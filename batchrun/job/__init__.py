"""A YAML file, .env and flags become one Job.

spec.py      the job as frozen dataclasses: every key with its type, default and description
tree.py      YAML text -> plain data with places; short forms, ${VAR}, files of prompts
parse.py     that data -> Loaded: the job, or all its mistakes with line and column
checks.py    what the types of a job can't express
globs.py     which files a glob means, before they exist
settings.py  Environment (process, .env) and RunOptions (flags), which win over the file
variants.py  the job with the flags applied; what a variant is called
schema.py    the JSON Schema of a job file, for editors

Others import from here alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

from batchrun.job.globs import matches
from batchrun.job.settings import Environment, PipeFormat, RunOptions, command_line, read_environment
from batchrun.job.spec import (
    DEFAULT_DETAILS,
    OUTPUT_SUFFIXES,
    PAGE_USD,
    PAID_ENGINE,
    SHORT_TYPES,
    TOKEN_BOUNDS,
    Answer,
    AnswerMode,
    BatchOptions,
    CostCap,
    CsvOptions,
    CsvType,
    Detail,
    Input,
    Job,
    JobPath,
    Limits,
    Message,
    Model,
    Output,
    OutputCsv,
    Part,
    PriceOption,
    Prompt,
    RayOptions,
    dotted,
    parse_duration,
)
from batchrun.job.variants import merged

if TYPE_CHECKING:
    from batchrun.job.checks import check
    from batchrun.job.parse import Loaded, examine, load
    from batchrun.job.schema import json_schema
    from batchrun.job.tree import as_yaml, is_job

__all__ = [
    "DEFAULT_DETAILS",
    "OUTPUT_SUFFIXES",
    "PAGE_USD",
    "PAID_ENGINE",
    "SHORT_TYPES",
    "TOKEN_BOUNDS",
    "Answer",
    "AnswerMode",
    "BatchOptions",
    "CostCap",
    "CsvOptions",
    "CsvType",
    "Detail",
    "Environment",
    "Input",
    "Job",
    "JobPath",
    "Limits",
    "Loaded",
    "Message",
    "Model",
    "Output",
    "OutputCsv",
    "Part",
    "PipeFormat",
    "PriceOption",
    "Prompt",
    "RayOptions",
    "RunOptions",
    "as_yaml",
    "check",
    "command_line",
    "dotted",
    "examine",
    "is_job",
    "json_schema",
    "load",
    "matches",
    "merged",
    "parse_duration",
    "read_environment",
]

# pydantic and ruamel.yaml take 100 ms to import, which `import batchrun` and `--help` need not pay.
_HEAVY = {
    "Loaded": "parse",
    "as_yaml": "tree",
    "check": "checks",
    "examine": "parse",
    "is_job": "tree",
    "json_schema": "schema",
    "load": "parse",
}

if not TYPE_CHECKING:  # a type checker would let every name through

    def __getattr__(name: str) -> Any:  # noqa: ANN401  (functions and types)
        """Import a name that needs a heavy library when it is used."""
        if name in _HEAVY:
            return getattr(importlib.import_module(f"batchrun.job.{_HEAVY[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
