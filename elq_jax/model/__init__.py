"""BERT, the band of spans, the two encoders, and `Model`: configuration, parameters, tokenizer."""
