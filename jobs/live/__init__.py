"""What stands beside a run on this machine: its table on the terminal, its exporter."""
