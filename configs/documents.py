"""MiniLM on questions and on passages of Wikipedia, so that one linker serves both.

Purpose: a linker for documents (docs/long-text.md) that is as good on questions as that of webqsp.
Passages are labelled by their links, and by later mentions of a text that was linked before; names
of the catalogue that are neither are neutral. Long passages are cut to windows as in linking.
Hardware: CPU or one GPU. Time: not measured.
Score: not measured. The linker of configs/webqsp.py is the one to compare with: docs/long-text.md.
Data: data/entities.jsonl.gz, data/questions/{webqsp,simplequestions,lcquad1}/ and the dump below.
Pages whose number ends in 7 are held out, for the choice of step and threshold.
Command: python -m elq_jax.encode_entities --catalogue data/entities.jsonl.gz --pooling mean \\
    --normalize --max_tokens 48 --output runs/catalogue
  python -m elq_jax.wikipedia --dump data/dumps/enwiki-sample-pages-articles.xml.bz2 \\
    --red_links --repeat_mentions --output runs/enwiki
  zcat runs/enwiki/passages/*.gz | grep -v '^{"id":"[0-9]*7-' > runs/enwiki_train.jsonl
  zcat runs/enwiki/passages/*.gz | grep '^{"id":"[0-9]*7-' > runs/enwiki_dev.jsonl
  python -m elq_jax.train --config configs/documents.py --workdir runs/documents
"""

import ml_collections

from configs import default, webqsp


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = webqsp.get_config()
    config.init_from = config.catalogue = "runs/webqsp/linker"
    config.partially_labelled = (*(False for _ in config.train_files), True)
    config.train_files += ("runs/enwiki_train.jsonl",)
    config.train_repeats += (1.0,)
    config.neutral_single_words = "capitalised"
    config.dev_files += ("runs/enwiki_dev.jsonl",)
    config.joint.num_steps = 400
    config.joint.eval_every = 200
    config.linking.max_mentions = 20  # In 64 tokens, articles have more than questions.
    return default.select(config, variant)
