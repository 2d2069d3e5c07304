"""MiniLM on WebQuestions entity linking against 214,958 entities, on a CPU.

Purpose: the reference result of the README. The entity encoder is MiniLM as published (mean
pooling, unit length), frozen; the question encoder starts from the same weights.
Hardware: CPU, 2 cores, 24 GiB. Time: 26 minutes of training beside other work (about 2 s a step),
50 minutes for encoding the catalogue beside other work.
Score: webqsp/dev weak F1 0.931, strong 0.890 at step 500; webqsp/test (threshold from dev) 0.909
and 0.863, in catalogue. Measured with JAX's default generator for dropout; it is "rbg" since.
Data: data/entities.jsonl.gz and data/questions/{webqsp,simplequestions,lcquad1}/ (the folder may be
a link).
Command: python -m elq_jax.encode_entities --catalogue data/entities.jsonl.gz --pooling mean \\
    --normalize --max_tokens 48 --output runs/catalogue
  python -m elq_jax.train --config configs/webqsp.py --workdir runs/webqsp
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default.get_config()
    config.catalogue = "runs/catalogue"
    sets = ("webqsp", "simplequestions", "lcquad1")
    config.train_files = tuple(f"data/questions/{name}/train.jsonl" for name in sets)
    config.train_repeats = (2.0, 0.25, 1.0)
    config.dev_file = "data/questions/webqsp/dev.jsonl"
    config.model.max_entity_tokens = 48
    config.joint.num_steps = 600
    return default.select(config, variant)
