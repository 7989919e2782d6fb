"""One attempt, by three ways to send."""
