"""Event logs to validated events: `json_lines > read > validate`."""
