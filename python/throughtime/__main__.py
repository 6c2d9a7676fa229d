"""`python -m throughtime`: the command line, also where the command `throughtime` is not on the search path."""

from .cli import app

if __name__ == "__main__":
    app()
