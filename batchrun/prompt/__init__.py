"""A row to its question, key and body; a reply's text to a typed answer."""
