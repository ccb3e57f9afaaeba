"""What a person at a terminal sees of a run: its progress and its summary."""
