"""`python -m sweeper`."""

from sweeper.cli.main import command

if __name__ == "__main__":
    command()
