"""Methods that work inside the text tower."""
