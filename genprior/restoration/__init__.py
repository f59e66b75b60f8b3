"""What Python users, the shell and a page share: from a photo to a problem and its scores."""
