"""`headrace bench alignment`: a backlog beside fresh topics, with and without alignment."""
