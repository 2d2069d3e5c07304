"""Sizes of encoders for measurements with random weights, which are as fast as trained ones."""

from elq_jax.model.config import BertConfig

BERTS = {
    # The vocabulary is small, so that the optimiser's share does not hide the others.
    "small": BertConfig(
        vocab_size=1000, hidden_size=128, num_layers=4, num_heads=4, intermediate_size=512
    ),
    "minilm": BertConfig(hidden_size=384, num_layers=6, intermediate_size=1536),
    "base": BertConfig(),
    "large": BertConfig(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
}
