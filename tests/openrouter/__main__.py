"""`python -m openrouter`: serves the simulator for other processes."""

import argparse
from decimal import Decimal

from openrouter.config import Config, parse_faults, parse_latency
from openrouter.server import serve


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    options = argparse.ArgumentParser(
        "python -m openrouter",
        description="Serve an OpenRouter on loopback that says it is a simulator. One line of JSON tells its address.",
    )
    options.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    options.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers and faults")
    options.add_argument("--latency", default="0", metavar="SECONDS", help="of a generation: 0.5, or 0.2..0.8")
    options.add_argument(
        "--faults", nargs="*", action="extend", default=[], metavar="CASE=RATE", help="429=0.02 503:2=0.01"
    )
    options.add_argument("--rpm", type=int, metavar="N", help="requests per minute")
    options.add_argument("--day-quota", type=int, metavar="N", help="requests per day")
    options.add_argument("--hidden-concurrency", type=int, metavar="N", help="more generations at once bring 429")
    options.add_argument("--credit", type=Decimal, metavar="USD", help="the account's credit")
    options.add_argument("--require-key", metavar="KEY", help="the only key that is accepted")
    options.add_argument("--until-stdin-closes", action="store_true", help="end with the parent process")
    return options


def main() -> None:
    """Run the command."""
    options = parser()
    asked = options.parse_args()
    try:
        config = Config(
            seed=asked.seed,
            latency=parse_latency(asked.latency),
            faults=parse_faults(asked.faults),
            require_key=asked.require_key,
            requests_per_minute=asked.rpm,
            day_quota=asked.day_quota,
            hidden_concurrency=asked.hidden_concurrency,
            credit=asked.credit,
        )
        serve(config, asked.port, until_stdin_closes=asked.until_stdin_closes)
    except (ValueError, OSError) as error:
        options.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
