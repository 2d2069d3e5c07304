"""The linker of configs/wikipedia_pretrain.py, fine-tuned on the questions of WebQSP.

Purpose: the second half of the published recipe (learning rate 1e-5, batches of 128, 100 epochs
over WebQSP alone), applied to the linker that configs/wikipedia_pretrain.py trains.
Hardware: one TPU v3-8, or one GPU with 32 GB or more. Memory of a core of a v3-8: as
configs/tpu_v3.py.
Time: 1,800 steps of at least 0.04 s on a v3-8 (docs/scaling.md); not measured. Score: not measured.
Data: the linker directory, with its catalogue and its vectors, and data/questions/webqsp/.
Command: tpu_scripts/run_tpu.sh elq_jax.train --config configs/webqsp_finetune.py \\
    --workdir gs://my-bucket/runs/finetune --config.init_from=data/wikipedia_linker \\
    --config.catalogue=data/wikipedia_linker
"""

import ml_collections

from configs import default, tpu_v3


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = tpu_v3.get_config()
    config.init_from = "data/wikipedia_linker"
    config.catalogue = "data/wikipedia_linker"
    config.train_files = ("data/questions/webqsp/train.jsonl",)
    config.train_repeats = ()
    config.joint.eval_every = 90
    config.joint.checkpoint_every = 180
    config.joint.log_every = 18
    return default.select(config, variant)
