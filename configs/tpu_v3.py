"""BERT-large on a v3-8: fine-tunes the published model against all of its 5,903,527 entities.

Purpose: the original's fine-tuning, with the exact likelihood instead of its approximation. The
encoders, entity vectors and hyper-parameters are the published ones (learning rate 1e-5 with 10%
warm-up and linear decay, batches of 128, 100 epochs, weight decay 0.01, gradients clipped to 1,
mentions of up to 11 tokens, both losses with weight 1). The linking loss is the exact softmax over
the catalogue; the original uses ten mined negatives (see configs/original_recipe.py).
Hardware: one TPU v3-8 (4 chips, 8 cores of 16 GiB, one host).
Memory of a core, 16 questions of up to 32 tokens in a step (docs/scaling.md):
    334.1M parameters and two moments of Adam, float32     4.01 GB
    gradients, float32                                      1.34 GB
    737,941 of 5,903,527 rows x 1024, bfloat16              1.51 GB
    activations of 24 layers, bfloat16                      0.46 GB
    logits of 256 mentions x 16,384 rows, twice, and rows   0.10 GB
    a second copy of the parameters during evaluation       1.34 GB
    together                                                8.76 GB of 17.18 GB
The TPU compiler needs 5.52 GB for arguments and 2.09 GB beside them, without the last copy.
Time: 5,800 steps of at least 0.04 s (docs/scaling.md); not measured. Score: not measured.
Data: data/questions/{webqsp,simplequestions,lcquad1}/, and the published model:
  python -m elq_jax.convert --checkpoint elq_wiki_large.bin --params elq_large_params.txt \\
    --catalogue entity.jsonl --embeddings all_entities_large.t7 --storage_dtype bfloat16 \\
    --output data/elq_wiki
Command: DATA=gs://my-bucket/data tpu_scripts/setup_tpu.sh
  tpu_scripts/run_tpu.sh elq_jax.train --config configs/tpu_v3.py --workdir gs://my-bucket/runs/v3
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default.get_config()
    config.init_from = "data/elq_wiki"
    config.catalogue = "data/elq_wiki"
    sets = ("webqsp", "simplequestions", "lcquad1")
    config.train_files = tuple(f"data/questions/{name}/train.jsonl" for name in sets)
    config.train_repeats = (2.0, 0.25, 1.0)
    config.dev_files = ("data/questions/webqsp/dev.jsonl",)

    published_model(config)
    config.encode.dtype = "bfloat16"
    config.encode.storage_dtype = "bfloat16"
    config.encode.batch_size = 1024

    config.joint.batch_size = 128  # 16 on each core.
    config.joint.num_epochs = 100.0
    config.joint.learning_rate = 1e-5
    config.joint.new_module_factor = 1.0
    config.joint.span_loss_weight = 1.0
    config.joint.linking_loss = "full_catalogue"
    config.joint.dtype = "bfloat16"
    config.joint.table_dtype = "bfloat16"
    config.joint.eval_every = 500
    config.joint.checkpoint_every = 500
    config.joint.log_every = 50
    return default.select(config, variant)


def published_model(config: ml_collections.ConfigDict) -> None:
    """Sets the `model` section to the published model; it must agree with `init_from`."""
    config.model.entity_pooling = "cls"
    config.model.normalize_entities = False
    config.model.mention_aggregation = "all_avg"
    config.model.normalize_mentions = False
    config.model.score_scale = None
    config.model.max_mention_width = 11
    config.model.max_question_tokens = 32
    config.model.max_entity_tokens = 128
