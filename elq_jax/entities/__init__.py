"""The catalogue: its file, its embeddings, how both are made."""
