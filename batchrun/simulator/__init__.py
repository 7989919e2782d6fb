"""An OpenRouter on loopback that says it is a simulator."""
