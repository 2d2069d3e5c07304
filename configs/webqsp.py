"""MiniLM on WebQuestions entity linking against 214,958 entities, on a CPU.

Purpose: the reference result of the README. The entity encoder is MiniLM as published (mean
pooling, unit length), frozen; the question encoder starts from the same weights.
Hardware: CPU, 2 cores, 24 GiB; training takes 4.4 GiB. Time: 1.1 to 1.4 s a step when left alone,
14 minutes of training; encoding the catalogue takes 50 minutes beside other work.
Score: webqsp/dev weak F1 0.932, strong 0.890; webqsp/test (threshold from dev) 0.914 and 0.875, in
catalogue. Others on dev: full_catalogue 0.928, 0.887 (1.6 to 1.8 s a step; webqsp/test 0.908,
0.863), also with simplequestions 0.6 times an epoch and 480 steps 0.926, 0.877, and without
webqsp/train_oov and 600 steps 0.931, 0.890. They differ by less than the standard error, 0.01.
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
    # Mentions of entities outside the catalogue teach where mentions are.
    files = ("webqsp/train", "webqsp/train_oov", "simplequestions/train", "lcquad1/train")
    config.train_files = tuple(f"data/questions/{name}.jsonl" for name in files)
    config.train_repeats = (2.0, 2.0, 0.25, 1.0)
    config.dev_file = "data/questions/webqsp/dev.jsonl"
    config.model.max_entity_tokens = 48
    config.joint.linking_loss = "hard_negatives"
    config.joint.num_steps = 700
    return default.select(config, variant)
