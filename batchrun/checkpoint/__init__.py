"""All SQL: what was asked, what was answered, what it cost."""
