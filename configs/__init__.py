"""Experiment records: one `get_config()` per file; they import one another as `configs`.

Run from the root of the repository, or import as `elq_jax.configs` where that is installed: then
this is what `from configs import default` finds in them.
"""

import sys

sys.modules.setdefault("configs", sys.modules[__name__])
