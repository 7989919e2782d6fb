"""A stand-in for OpenRouter on loopback: made-up answers with usage and prices, for trials at no cost.

server.py     HTTP on loopback, as a process of its own
app.py        which request gets which reply
account.py    one account: settings, faults, limits, money
chat.py       POST /chat/completions
batches.py    /batches and /files, at half price
decisions.py  POST /systemone and /api/alpha/decisions
values.py     texts, and values for a JSON Schema
models.py     the models, their prices, and exact costs

Nothing here imports the rest of batchrun.
"""

from batchrun.servers.simulator.account import Config, parse_config
from batchrun.servers.simulator.app import Simulator
from batchrun.servers.simulator.server import serve

__all__ = ["Config", "Simulator", "parse_config", "serve"]
