"""The original ELQ (github.com/facebookresearch/BLINK, folder elq): its files, training, decoding.

Nothing imports this package but `convert` and the flag --preset. Other packages find its parts by
name, such as "elq_jax.original.recipe:original", where a configuration or a file asks for them.
"""
