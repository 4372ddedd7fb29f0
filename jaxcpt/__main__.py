"""`python -m jaxcpt VERB` does what `jaxcpt VERB` does."""

from jaxcpt.cli import run

if __name__ == "__main__":
    run()
