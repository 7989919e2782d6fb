"""`python -m batchrun.servers.simulator`: serve the simulator for another process."""

import argparse
from decimal import Decimal

from batchrun.servers.simulator import parse_config, serve


def main() -> None:
    """Serve until a signal comes or, with `--until-stdin-closes`, until stdin ends."""
    parser = argparse.ArgumentParser("python -m batchrun.servers.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", default="0", metavar="SECONDS", help="0.5, or a range: 0.2..0.8")
    parser.add_argument("--faults", action="append", default=[], metavar="STATUS=RATE", help="such as 429=0.02")
    parser.add_argument("--rpm", type=int, metavar="N", help="requests per minute")
    parser.add_argument("--credit", type=Decimal, metavar="USD")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the parent process")
    settings = vars(parser.parse_args())
    port, until_stdin_closes = settings.pop("port"), settings.pop("until_stdin_closes")
    try:
        serve(parse_config(**settings), port, until_stdin_closes=until_stdin_closes)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
