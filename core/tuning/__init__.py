"""The run: settings, the tuning space, the loop, and the result."""
