"""What a run tells of its way, and to whom: callbacks, the display, the log, the result."""
