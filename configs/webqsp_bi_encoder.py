"""configs/webqsp.py with entity vectors of its own: both encoders are trained first.

Purpose: what is gained over MiniLM's entity vectors as they are. The two encoders are trained
together on the labelled questions and those made from the catalogue, with negatives that are mined
once, at step 400; then the catalogue is encoded, and the question encoder is trained as in
configs/webqsp.py.
Hardware: one GPU. On 2 CPU cores the catalogue alone, which is encoded twice, takes 50 minutes.
Time: 0.02 to 0.07 s a step of the first stage on an H200 that ran six other jobs, once compiled.
Score: mean of weak and strong F1 over the three dev sets, before candidate scoring: 0.930 and
0.869, against 0.904 and 0.850 of configs/webqsp.py. With candidate scoring little is left of that:
0.933 and 0.897 with half the steps, against 0.928 to 0.930 and 0.887 to 0.890 (docs/quality.md).
Data: as configs/webqsp.py.
Command: see configs/webqsp.py for the questions that are made, then
  python -m elq_jax.train --config configs/webqsp_bi_encoder.py --workdir runs/bi_encoder
"""

import ml_collections

from configs import default, webqsp


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = webqsp.get_config()
    config.catalogue = "data/entities.jsonl.gz"
    config.encode.batch_size = 512
    config.encode.dtype = "bfloat16"
    config.stages = ("bi_encoder", "joint")
    config.bi_encoder.num_steps = 800
    config.bi_encoder.mine_every = 400
    return default.select(config, variant)
