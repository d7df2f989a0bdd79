"""The operating system: files, signals, child processes, time. It knows nothing of models."""
