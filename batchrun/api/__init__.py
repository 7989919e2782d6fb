"""What a server wants, what it said, and what it costs."""
