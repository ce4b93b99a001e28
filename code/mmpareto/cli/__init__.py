"""The commands: each module is one, and `code/*.py` start them."""
