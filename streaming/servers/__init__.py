"""What the parameter servers hold, and how it is changed: `frequency`, `state`."""
