"""``python -m octavo`` and the ``octavo`` command."""

from .cli import main

if __name__ == "__main__":
    main()

__all__ = ["main"]
