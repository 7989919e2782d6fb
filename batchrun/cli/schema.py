"""`batchrun schema`: the job file's JSON Schema, for editors."""

import click

from batchrun.cli.arguments import print_out


@click.command("schema")
def command() -> None:
    """Print the job file's JSON Schema.

    Editors with a YAML language server check a job file that begins with
    `# yaml-language-server: $schema=PATH/job.schema.json`.
    """
    import orjson

    from batchrun.job import json_schema

    print_out(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2).decode())
