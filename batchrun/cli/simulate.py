"""`batchrun simulate`: serves the simulator on loopback."""

from typing import Any

import click

from batchrun.cli.arguments import Money, debug_option
from batchrun.errors import UserError


@click.command("simulate")
@click.option("--port", type=click.IntRange(0, 65535), default=8123, show_default=True, help="Port on 127.0.0.1.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same answers and faults.")
@click.option("--latency", default="0.2", show_default=True, metavar="SECONDS", help="0.5, or a range: 0.2..0.8.")
@click.option("--faults", multiple=True, metavar="STATUS=RATE", help="Such as 429=0.02 or 500=0.01; repeatable.")
@click.option("--rpm", type=click.IntRange(1), metavar="N", help="Requests per minute.")
@click.option("--credit", type=Money(), metavar="USD", help="The account's credit.")
@debug_option
def command(port: int, debug: bool, **settings: Any) -> None:  # noqa: ANN401, ARG001, FBT001  (flags; __main__ reads debug)
    """Serve a simulated OpenRouter on this machine, until Ctrl-C.

    Use it with `--endpoint http://127.0.0.1:8123/api/v1`, or with any OpenAI-compatible client. It needs no account
    and costs nothing; its answers are made up.
    """
    from batchrun.servers.simulator import parse_config, serve

    try:
        config = parse_config(**settings)
    except ValueError as problem:
        raise UserError(str(problem)) from None
    try:
        serve(config, port)
    except OSError as problem:
        raise UserError(f"port {port}: {problem.strerror}; --port 0 takes a free one") from None
