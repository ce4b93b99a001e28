"""The commands, a module each, which `code/*.py` start; common.py, running.py and search.py are parts of them."""
