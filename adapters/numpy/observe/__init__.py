"""The float graph, watched: intermediate values, shapes, and prefixes that candidates share."""
