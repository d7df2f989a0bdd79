"""Candidates as files: tensors and facts that octavo reads again; nothing in them can run code."""
