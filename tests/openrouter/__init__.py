"""An OpenRouter on loopback that says it is a simulator.

It is written from the API's documentation and imports nothing of batchrun, so that it can bear witness against it.
"""

from openrouter.app import Simulator, create_app
from openrouter.config import Config
from openrouter.server import serve

__all__ = ["Config", "Simulator", "create_app", "serve"]
