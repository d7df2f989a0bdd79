"""``python -m octavo`` and the ``octavo`` command."""

from octavo.cli import main

if __name__ == "__main__":
    main()

__all__ = ["main"]
