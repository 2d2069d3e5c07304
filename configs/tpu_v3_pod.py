"""configs/tpu_v3.py on a v3-32: four hosts, four times the batch, a quarter of the rows per core.

Purpose: the same training on several hosts.
Hardware: one TPU v3-32 (16 chips, 32 cores of 16 GiB, 4 hosts), spot or not.
Memory of a core, 16 questions of up to 32 tokens in a step (docs/scaling.md): as on a v3-8, but
184,486 rows, 0.38 GB, and logits of 1,024 mentions: 7.8 GB of 17.18 GB together.
The batch is four times the published one, so the learning rate is doubled (square-root scaling, the
usual rule for Adam). A batch of 128 does not pay on 32 cores: sending the gradients would take
longer than computing them.
Time: 1,500 steps of at least 0.035 s (docs/scaling.md); not measured. Score: not measured.
Data: as configs/tpu_v3.py.
Command: export TPU_TYPE=v3-32 TPU_SPOT=1
  tpu_scripts/create_tpu.sh && DATA=gs://my-bucket/data tpu_scripts/setup_tpu.sh
  DATA=gs://my-bucket/data tpu_scripts/run_tpu.sh elq_jax.train --config configs/tpu_v3_pod.py \\
    --workdir gs://my-bucket/runs/pod
"""

import ml_collections

from configs import default, tpu_v3


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = tpu_v3.get_config()
    config.joint.batch_size = 512  # 16 on each core.
    config.joint.learning_rate = 2e-5
    config.joint.eval_every = 140
    config.joint.checkpoint_every = 140
    config.joint.log_every = 14
    config.encode.batch_size = 4096
    return default.select(config, variant)
