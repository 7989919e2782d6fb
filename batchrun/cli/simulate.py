"""`batchrun simulate`: serves the simulator on loopback."""

import click

from batchrun.cli.arguments import Money, debug_option
from batchrun.errors import UserError


@click.command("simulate")
@click.option("--port", type=click.IntRange(0, 65535), default=8123, show_default=True, help="Port on 127.0.0.1.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same answers and faults.")
@click.option("--latency", default="0.2", show_default=True, metavar="SECONDS", help="0.5, or a range: 0.2..0.8.")
@click.option("--faults", multiple=True, metavar="CASE=RATE", help="Such as 429=0.02 or 503:2=0.01; repeatable.")
@click.option("--rpm", type=click.IntRange(1), metavar="N", help="Requests per minute.")
@click.option("--day-quota", type=click.IntRange(1), metavar="N", help="Requests per day.")
@click.option("--hidden-concurrency", type=click.IntRange(1), metavar="N", help="More at once bring 429.")
@click.option("--credit", type=Money(), metavar="USD", help="The account's credit.")
@debug_option
def command(port: int, seed: int, latency: str, faults: tuple[str, ...], **limits: object) -> None:
    """Serve an OpenRouter that says it is a simulator, until Ctrl-C.

    Point a job at it with `--endpoint http://127.0.0.1:8123/api/v1`, or any OpenAI-compatible client of your own.
    Its counters are at /_sim/counters.
    """
    from batchrun.api import MISSING_SIMULATOR

    try:
        from batchrun.servers.simulator import Config, serve
        from batchrun.servers.simulator.config import parse_faults, parse_latency
    except ImportError:
        raise UserError(MISSING_SIMULATOR) from None
    try:
        config = Config(
            seed=seed,
            latency=parse_latency(latency),
            faults=parse_faults(faults),
            requests_per_minute=limits["rpm"],  # type: ignore[arg-type]  # click gives each flag its type
            day_quota=limits["day_quota"],  # type: ignore[arg-type]  # as above
            hidden_concurrency=limits["hidden_concurrency"],  # type: ignore[arg-type]  # as above
            credit=limits["credit"],  # type: ignore[arg-type]  # as above
        )
    except ValueError as problem:
        raise UserError(str(problem)) from None
    try:
        serve(config, port)
    except OSError as problem:
        raise UserError(f"port {port}: {problem.strerror}; --port 0 takes a free one") from None
