"""What the programs share: running one, flags, configurations."""

from elq_jax.cli.run import run, start_jax

use_compilation_cache = start_jax

__all__ = ["run", "start_jax", "use_compilation_cache"]
