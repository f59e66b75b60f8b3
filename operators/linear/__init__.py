"""Linear operators, and what is in closed form for them."""
