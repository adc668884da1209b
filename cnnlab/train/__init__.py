"""One run: its parts, its steps, its records."""
