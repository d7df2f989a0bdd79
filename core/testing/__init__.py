"""What authors of plugins test theirs with: conformance kits, and simulated problems."""
