"""The documentation, held to its word.

Every block of code of every page is run or checked, as a reader would: octavo is installed from its
wheel, the folder is empty, and no checkout is near.

- ``python`` and ``sh`` blocks of a page run in order, the Python ones in one process.
- ``toml``, ``yaml`` and ``json`` blocks are read as configurations.
- A block whose first line is a comment with a file's name (``# tune.toml``) is written to that
  file; Python of that kind is not run but may be imported.
- ``text`` is what something printed. Where ``<!-- output -->`` stands before it, it is compared
  with what the block before printed.
- ``<!-- fragment: why -->`` before a block says that it is not run, and why.
"""
