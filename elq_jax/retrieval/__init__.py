"""Entity embeddings and search over them."""
