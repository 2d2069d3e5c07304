"""BERT-large from scratch on Wikipedia's own links, in two stages, on a v3-8 or larger.

Purpose: a general linker that needs no published ELQ model. First both encoders learn as a
bi-encoder; negatives are the entities of the batch, later mined ones too. Then all 5,903,527
entities are encoded once, and the question encoder learns against the exact softmax over them.
The learning rate, its schedule, the batch and the lengths are the published ones.
Hardware: one TPU v3-8 (8 cores of 16 GiB), or a v3-32 with the changes of tpu_v3_pod.py.
Memory of a core, 16 passages of up to 64 tokens with 64 mentions in a step, two entities of up to
128 tokens for each (docs/scaling.md):
    bi_encoder: 2 x 334M parameters, gradients and moments, float32    10.69 GB
        remat keeps the input of each of 24 layers for 17,408 tokens    0.86 GB
        and recomputes one layer at a time                              0.78 GB
    joint: as configs/tpu_v3.py with twice the tokens                   9.3 GB
Time: at half the peak rate 0.7 s a step for bi_encoder, 1.4 s with mined negatives, 0.2 s for
joint, and 0.5 h for encoding the catalogue, twice: about 36 h (docs/scaling.md); not measured.
Score: not measured.
Data: what `python -m elq_jax.wikipedia` makes of a dump (docs/wikipedia.md), in data/wikipedia; the
published catalogue (entity.jsonl) with passages of your own, of which the original released none,
is read too. Pages whose number ends in 77 are held out. Their passages choose step and threshold;
those of pages that end in 78 fit candidate scoring and probabilities.
Command: python -m elq_jax.wikipedia --dump enwiki-latest-pages-articles-multistream.xml.bz2 \\
    --page_props enwiki-latest-page_props.sql.gz --repeat_mentions --output data/wikipedia
  W=data/wikipedia
  zcat $W/passages/*.gz | grep -v '^{"id":"[0-9]*7[78]-' > $W/train.jsonl
  zcat $W/passages/*.gz | grep '^{"id":"[0-9]*77-' | head -n 10000 > $W/dev.jsonl
  zcat $W/passages/*.gz | grep '^{"id":"[0-9]*78-' | head -n 10000 > $W/fit.jsonl
  DATA=gs://my-bucket/data tpu_scripts/setup_tpu.sh
  tpu_scripts/run_tpu.sh elq_jax.train --config configs/wikipedia_pretrain.py \\
    --workdir gs://my-bucket/runs/wikipedia
For questions among the passages, add the lines below. train_repeats is how often an epoch reads
each file: with 17,000,000 passages and 2,204 questions, one example in ten is then a question.
    --config.train_files="('data/wikipedia/train.jsonl','data/questions/webqsp/train.jsonl')" \\
    --config.train_repeats="(1.0,857.0)" --config.partially_labelled="(True,False)"
"""

import ml_collections

from configs import default, tpu_v3


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default.get_config()
    config.question_encoder = "bert-large-uncased"
    config.catalogue = "data/wikipedia/entities.jsonl.gz"
    config.train_files = ("data/wikipedia/train.jsonl",)
    # Links leave out most later mentions: other names of the catalogue are neither right nor wrong.
    config.partially_labelled = (True,)
    config.neutral_single_words = "capitalised"
    config.dev_files = ("data/wikipedia/dev.jsonl",)
    config.fit_files = ("data/wikipedia/fit.jsonl",)
    config.on_error = "skip"

    tpu_v3.published_model(config)
    config.model.max_question_tokens = 64
    config.encode.dtype = "bfloat16"
    config.encode.storage_dtype = "bfloat16"
    config.encode.batch_size = 1024

    config.stages = ("bi_encoder", "joint")
    for stage in (config.bi_encoder, config.joint):
        stage.batch_size = 128
        stage.num_steps = 100_000
        stage.learning_rate = 1e-5
        stage.new_module_factor = 1.0
        stage.span_loss_weight = 1.0
        stage.dtype = "bfloat16"
        stage.checkpoint_every = 1000
        stage.log_every = 100
    config.bi_encoder.mine_every = 50_000
    config.bi_encoder.num_negatives = 1
    config.bi_encoder.remat = True
    config.joint.linking_loss = "full_catalogue"
    config.joint.table_dtype = "bfloat16"
    config.joint.eval_every = 5000
    config.eval.max_questions = 2000
    return default.select(config, variant)
