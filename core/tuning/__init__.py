"""The run: prepared, searched by one loop, and finished."""
