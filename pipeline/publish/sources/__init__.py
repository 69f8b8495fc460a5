"""Files to rows of partitions, in an order that depends on the files: `rows > order > each`."""
