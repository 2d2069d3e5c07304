"""The demo on an accelerator: one TPU chip or one GPU of a notebook, or the eight cores of a v3-8.

Purpose: notebooks/quickstart_tpu.ipynb. It trains as configs/demo.py does, with more steps and in
bfloat16. It needs no files but the repository and the MiniLM package.
Hardware: one TPU v5e chip (v5litepod-1), one T4 or better, or a v3-8. Memory: not measured.
Time and score: not measured.
Command: python -m elq_jax.train --config configs/colab.py --workdir runs/colab
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default.get_config()
    config.catalogue = "demo/catalogue.jsonl"
    config.train_files = ("demo/train.jsonl",)
    config.dev_files = ("demo/dev.jsonl",)
    config.model.max_entity_tokens = 48
    config.model.max_question_tokens = 32
    config.encode.batch_size = 256
    config.encode.dtype = "bfloat16"

    config.stages = ("bi_encoder", "joint")
    for stage in (config.bi_encoder, config.joint):
        stage.batch_size = 64
        stage.dtype = "bfloat16"
    config.bi_encoder.num_steps = 200
    config.bi_encoder.mine_every = 50
    config.bi_encoder.num_negatives = 3
    config.bi_encoder.learning_rate = 5e-5
    config.joint.num_epochs = 10.0
    return default.select(config, variant)
