"""What stale workers cost: real clusters, and more workers simulated, by merge rule."""
