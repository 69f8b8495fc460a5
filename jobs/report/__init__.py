"""Pages for a browser that need no network: `page` is what they share, `samples` the checks'."""
