"""Flags that several benchmarks have; two modules cannot define a flag of the same name."""

from absl import flags

from elq_jax.cli.run import define_path, define_paths

SMALL = flags.DEFINE_bool("small", False, "Use small sizes, to see on a CPU that everything works.")
ONLY = flags.DEFINE_string("only", "", "Regular expression; work whose name contains a match.")
LINKER = define_path("linker", "Linker directory with which questions are linked.")
QUESTIONS = define_path("questions", "File of questions to link.")
OUTPUT = define_path("output", "File or folder for the results; it must not exist.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Number of measured rounds.", 1)
SETS = define_paths("sets", "Sets of labelled questions (.jsonl).")
PASSAGES = define_paths("passages", "Passages of a Wikipedia dump (.jsonl, .jsonl.gz).")
