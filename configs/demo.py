"""A linker over 420 well-known entities, trained from scratch on a laptop CPU: `make demo`.

Purpose: a quick run of all stages on the data in demo/: both encoders learn together, later with
mined negatives; then the question encoder learns against frozen entity vectors.
Hardware: CPU, 2 cores. Time: 4.5 minutes with installation, evaluation and linking.
Score: weak F1 0.872, strong 0.850 on demo/dev.jsonl, where half of the mentions link to entities
unseen in training. Step and threshold are the best ones on these same questions.
Command: python -m elq_jax.train --config configs/demo.py --workdir runs/demo
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.catalogue = "demo/catalogue.jsonl"
    config.train_files = ("demo/train.jsonl",)
    config.dev_files = ("demo/dev.jsonl",)
    config.model.max_entity_tokens = 40
    config.model.max_question_tokens = 24
    config.length_buckets = ()  # All questions are padded to 24 tokens: one program to compile.
    config.stages = ("bi_encoder", "joint")

    config.bi_encoder.batch_size = 16
    config.bi_encoder.num_steps = 24
    config.bi_encoder.mine_every = 12
    config.bi_encoder.num_negatives = 1
    config.bi_encoder.learning_rate = 5e-5
    config.bi_encoder.log_every = 6

    config.joint.batch_size = 32
    config.joint.num_epochs = 3.0
    config.joint.log_every = 20
    config.joint.eval_every = 80
    config.joint.checkpoint_every = 80
    return config
