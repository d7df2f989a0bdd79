"""The float model, watched: values as extra outputs, bodies of control flow included."""
