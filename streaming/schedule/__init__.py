"""Which range comes next: `borders` (event times in offsets) > `plan`; `positions`, `progress`."""
