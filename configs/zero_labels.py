"""A linker for a catalogue of one's own, trained without a single labelled question.

Purpose: all questions are made from the catalogue, by `python -m elq_jax.synthesize` with the
patterns that come with it. Those that choose threshold and step, and those that candidate scoring
and probabilities are fitted on, have patterns that no step sees. No labelled question is needed.
Hardware: CPU, 2 cores. Time: 2 s of CPU time a step with --config.joint.dtype=auto, 3 s without.
Score: not measured as it is. 320 steps with --config.joint.dtype=auto on 214,958 entities: weak F1
0.852 on webqsp/dev, 0.799 on simplequestions/dev, 0.885 on lcquad1/dev; 0.877, 0.822 and 0.886
with scorers fitted on made questions of other patterns (commands: docs/own-catalogue.md).
Before there were class patterns, 1,000 steps: 0.866, 0.794 and 0.848. On the 420 entities of the
demo, with 300 steps of 32 questions, demo/dev.jsonl: 0.912.
Data: runs/catalogue, of entities.jsonl with `title`, `text` and, if there are any, `aliases`.
Command: python -m elq_jax.encode_entities --catalogue entities.jsonl --pooling mean --normalize \\
    --max_tokens 48 --output runs/catalogue
  python -m elq_jax.synthesize --catalogue runs/catalogue --max_tokens 48 \\
    --output runs/questions.jsonl --dev_output runs/questions_dev.jsonl \\
    --fit_output runs/questions_fit.jsonl
  python -m elq_jax.train --config configs/zero_labels.py --workdir runs/zero_labels
"""

import ml_collections

from configs import default


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default.get_config()
    config.catalogue = "runs/catalogue"
    config.train_files = ("runs/questions.jsonl",)
    # The words of the patterns hold other names of the catalogue, which nobody has labelled.
    config.partially_labelled = (True,)
    config.dev_files = ("runs/questions_dev.jsonl",)
    config.fit_files = ("runs/questions_fit.jsonl",)
    config.model.max_entity_tokens = 48
    config.model.max_question_tokens = 48
    config.joint.linking_loss = "hard_negatives"
    config.joint.num_steps = 1000
    return default.select(config, variant)
