"""Forms for use elsewhere."""
