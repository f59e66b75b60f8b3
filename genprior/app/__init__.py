"""The page: open a photo, say what happened to it, see what it may have been."""
