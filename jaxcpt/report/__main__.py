"""`python -m jaxcpt.report` does what `jaxcpt report` does."""

from jaxcpt.errors import run_command
from jaxcpt.report import main

if __name__ == "__main__":
    run_command(main)
