"""Every setting of `python -m elq_jax.train`, with its default. Other configurations start here.

Purpose: a base to import or copy; it names no data, so the command does.
Hardware: any. Time and score: not measured.
Command: python -m elq_jax.train --config configs/default.py --workdir runs/mine \\
    --config.catalogue=my_catalogue --config.dev_files=dev.jsonl \\
    --config.train_files=train.jsonl
"""

import ml_collections
from ml_collections import config_dict


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # Decides new parameters, dropout and the order of the data.
    config.num_devices = config_dict.placeholder(int)  # None: all local devices.

    # Encoders: "minilm", a folder with a BERT checkpoint, or a hub name.
    config.question_encoder = "minilm"
    config.entity_encoder = ""  # Empty: the same as question_encoder.
    config.init_from = ""  # Linker directory whose parameters and `model` the run starts from.
    config.model = ml_collections.ConfigDict()  # Settings of `Model.from_encoders`.
    config.model.entity_pooling = "mean"
    config.model.normalize_entities = True
    config.model.mention_aggregation = "all_avg_linear"
    config.model.normalize_mentions = True
    config.model.score_scale = 20.0
    config.model.max_mention_width = 16
    config.model.max_question_tokens = 64
    config.model.max_entity_tokens = 128
    config.model.symbols_apart = True  # Emoji attached to a word become tokens of their own.

    # Data. Catalogue: .jsonl, .jsonl.gz, a folder that encode_entities wrote, or a linker.
    config.catalogue = ""
    config.train_files = ()
    config.train_repeats = ()  # Number of times each file is read in an epoch; (): once.
    # Whether the labels of each file leave out mentions, (): of none. In such a file, unlabelled
    # names of the catalogue are neither right nor wrong.
    config.partially_labelled = ()
    config.neutral_single_words = "never"  # Names of one word too: "capitalised", "always".
    # Candidate scoring and probabilities are fitted on these, which no step sees. (): on a share of
    # the training questions, which is held out.
    config.fit_files = ()
    config.held_out_share = 0.1
    config.dev_files = ()  # Step and threshold are chosen by the mean of F1 over these.
    config.length_buckets = (16, 24, 32, 64, 128, 256)  # Questions are padded to one of these.
    config.on_error = "stop"  # "skip" leaves out lines that cannot be used and reports them.

    config.stages = ("joint",)  # (): nothing is trained; scorers are fitted to `init_from`.
    config.recipe = "standard"  # Or package.module:name; see elq_jax/training/optimizer.py.

    config.bi_encoder = _stage()
    config.bi_encoder.linking_loss = "hard_negatives"  # On mined ones; or in_batch.
    config.bi_encoder.num_negatives = 5  # Number mined for each mention.
    config.bi_encoder.mine_every = 0  # Steps between minings; 0: in-batch negatives only.

    config.joint = _stage()
    config.joint.linking_loss = "full_catalogue"  # in_batch, hard_negatives, "my_module:my_loss".
    config.joint.num_negatives = 10  # Mined for each mention in each step (hard_negatives).
    config.joint.chunk_size = 16384  # Number of catalogue rows scored at a time.
    config.joint.table_dtype = "float32"  # Entity vectors on devices; or bfloat16, int8.
    config.joint.eval_every = 100

    config.encode = ml_collections.ConfigDict()  # Used where entity vectors must be computed.
    config.encode.batch_size = 32
    config.encode.dtype = "auto"
    config.encode.storage_dtype = "float32"  # On disk: float32, bfloat16, int8.

    config.linking = ml_collections.ConfigDict()  # Fields of LinkingSettings.
    config.linking.max_mentions = 10
    config.linking.num_candidates = 10
    config.linking.spelling = True  # Misspelt words are read as words of the catalogue.

    config.eval = ml_collections.ConfigDict()
    config.eval.metric = "weak"  # The F1 that chooses threshold and best step; or strong.
    config.eval.threshold_floor = -8.0  # Lowest threshold that is tried.
    config.eval.max_questions = config_dict.placeholder(int)  # Of each dev file; None: all.
    # Only configs/original_recipe.py sets `original` and `bi_encoder.mask_duplicates`.
    return select(config, variant)


def select(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """Applies the variant after the colon of `--config configs/x.py:smoke`, if there is one.

    Raises:
      ValueError: there is no such variant.
    """
    if variant not in ("", "smoke"):
        raise ValueError(f"configuration variant {variant!r}; expected none, or 'smoke'")
    return smoke(config) if variant else config


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Shrinks a configuration to a few steps on a CPU, with the same stages, losses and types.

    It replaces the encoders by MiniLM and the data by demo/. Run it before a long run on a new
    machine, to see that everything works; the resulting linker is useless.
    """
    config.question_encoder, config.entity_encoder, config.init_from = "minilm", "", ""
    config.catalogue, config.dev_files = "demo/catalogue.jsonl", ("demo/dev.jsonl",)
    config.train_files, config.train_repeats = ("demo/train.jsonl",), ()
    config.fit_files, config.held_out_share = (), 0.04
    config.partially_labelled = ()
    config.model.max_question_tokens = 12  # One length, so one program to compile.
    config.model.max_entity_tokens = 16
    for stage in (config.bi_encoder, config.joint):
        stage.batch_size = 8
        stage.num_steps = 4
        stage.log_every = stage.checkpoint_every = 2
        stage.accumulate_steps = min(stage.accumulate_steps, 2)
        stage.num_negatives = min(stage.num_negatives, 2)
    config.bi_encoder.mine_every = min(config.bi_encoder.mine_every, 2)
    config.joint.chunk_size = 256
    config.joint.eval_every = 4
    config.encode.batch_size = 32
    config.eval.max_questions = 16
    return config


def _stage() -> ml_collections.ConfigDict:
    stage = ml_collections.ConfigDict()
    stage.batch_size = 64  # Questions, over all devices.
    stage.num_epochs = 10.0
    stage.num_steps = 0  # Number of steps; replaces num_epochs unless it is 0.
    stage.accumulate_steps = 1
    stage.learning_rate = 1e-4
    stage.new_module_factor = 20.0  # Mention head and scale learn this many times faster.
    stage.schedule = "linear"  # Or cosine, constant.
    stage.warmup_fraction = 0.1
    stage.weight_decay = 0.01
    stage.max_grad_norm = 1.0
    stage.span_loss_weight = 5.0
    stage.dtype = "float32"  # Type of matrix products; bfloat16; auto: what is fast here.
    stage.remat = False  # True: activations are recomputed, which saves memory.
    stage.log_every = 20
    stage.checkpoint_every = 200
    return stage
