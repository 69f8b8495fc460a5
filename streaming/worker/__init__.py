"""What a worker does with a range: `reader` gets it, `step` learns it."""
