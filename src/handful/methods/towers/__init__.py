"""Methods that work inside the image tower, or both."""
