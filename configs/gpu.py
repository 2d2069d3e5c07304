"""BERT-base on one GPU: both encoders trained on questions, against 214,958 entities.

Purpose: a linker from a plain BERT on one GPU. configs/webqsp.py takes MiniLM's entity vectors as
they are; here both encoders learn, first as a bi-encoder with mined negatives. Then the question
encoder learns against the softmax over the whole catalogue.
Hardware: one NVIDIA GPU with 16 GB or more; several GPUs divide the batch.
Memory, 64 questions of up to 64 tokens in a step: 2 x 109M parameters, gradients and moments, 3.5
GB; with remat, activations of 600 entities of 48 tokens 1.0 GB; in the joint stage the rows, 0.33
GB in bfloat16.
Time and score: not measured (`python -m benchmarks.gpu` measures the step).
Data: data/entities.jsonl.gz and data/questions/, as configs/webqsp.py.
Command: bash tpu_scripts/worker_setup.sh cuda12  # or tpu_scripts/gpu_machine.sh
  python -m elq_jax.train --config configs/gpu.py --workdir runs/gpu
"""

import ml_collections

from configs import default, webqsp


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = webqsp.get_config(made_questions=False)
    config.question_encoder = "bert-base-uncased"
    config.catalogue = "data/entities.jsonl.gz"
    config.encode.batch_size = 512
    config.encode.dtype = "bfloat16"
    config.encode.storage_dtype = "bfloat16"

    config.stages = ("bi_encoder", "joint")
    for stage in (config.bi_encoder, config.joint):
        stage.batch_size = 64
        stage.num_steps, stage.num_epochs = 0, 10.0
        stage.learning_rate = 5e-5
        stage.dtype = "bfloat16"
        stage.remat = True
    config.bi_encoder.mine_every = 400
    config.bi_encoder.num_negatives = 3
    config.joint.linking_loss = "full_catalogue"
    config.joint.table_dtype = "bfloat16"
    return default.select(config, variant)
