"""Methods that work on features only."""
