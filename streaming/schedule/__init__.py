"""Which range comes next: `probe` > `sizes`, `borders` > `plan`; `positions`, `progress`."""
