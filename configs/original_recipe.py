"""The training recipe of the original ELQ on the data of configs/webqsp.py, as a baseline.

Purpose: a comparison with configs/webqsp.py. Data, encoder and frozen entity vectors are the same;
optimiser, trainable parameters, order, dropout, losses and negatives are those of the original
(elq_jax/original/recipe.py). The linking loss is binary cross-entropy against the ten nearest
entities; exact search finds them, while the original uses HNSW. The mention head is never trained,
as in the original. The result is the best step on dev, while the original keeps the last one.
Hardware: CPU, 2 cores, 24 GiB. Time: 20 minutes (490 steps of 2.4 s, beside other work).
Score: webqsp/dev weak and strong F1 0.000 at every evaluation, where configs/webqsp.py is at 0.939
after about as many questions. The linking loss ends at 0.66, near the ln 2 = 0.69 of a guess:
entity vectors of unit length that were not trained for this loss separate entities too little, and
the mention head never learns. The original starts from trained encoders and a trained head; do so
with --config.init_from.
Data: as configs/webqsp.py, in the order of the files in every epoch.
Command: python -m elq_jax.encode_entities --catalogue data/entities.jsonl.gz --pooling mean \\
    --normalize --max_tokens 48 --output runs/catalogue
  python -m elq_jax.train --config configs/original_recipe.py --workdir runs/original_recipe

The published models were trained with batches of 128, 100 epochs and a learning rate of 1e-5, from
the checkpoint of an earlier run: --config.init_from=elq_wiki --config.catalogue=elq_wiki after
`convert`. The original's training of both encoders, with in-batch negatives, is
--config.stages=bi_encoder.
"""

import ml_collections

from configs import default, webqsp


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    data = webqsp.get_config(made_questions=False)
    for name in ("catalogue", "train_files", "train_repeats", "dev_files"):
        config[name] = data[name]
    config.held_out_share = 0.0  # The original trains on all questions and rescores nothing.
    config.linking.spelling = False

    config.model.max_entity_tokens = 48
    config.model.max_mention_width = 11
    config.model.mention_aggregation = "all_avg"
    config.model.normalize_mentions = False
    config.model.score_scale = None

    config.recipe = "elq_jax.original.recipe:original"  # Its settings are the section `original`.
    config.original = ml_collections.ConfigDict()
    config.original.type_optimization = "all_encoder_layers"
    config.original.eval_interval = 500

    for stage in (config.bi_encoder, config.joint):
        stage.batch_size = 128
        stage.num_epochs = 5.0
        stage.learning_rate = 1e-5
        stage.span_loss_weight = 1.0
    config.bi_encoder.linking_loss = "in_batch"
    config.bi_encoder.mask_duplicates = False  # Gold that occurs twice is its own negative.
    config.joint.linking_loss = "elq_jax.original.loss:hard_negatives_bce"
    config.joint.num_negatives = 10
    return config
