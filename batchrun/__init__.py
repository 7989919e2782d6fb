"""Ask a language model one question per row of a file."""

__version__ = "0.1.0"
