"""Text and files to arrays: tokenizer, catalogue, questions, batches."""
