"""What surrounds every command: streams, help, options that several share, errors, logs."""
