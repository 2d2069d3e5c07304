"""Experiment records: each file has one `get_config()` and may import others as `configs`.

In the repository this is the package `configs`. Installed, it is `elq_jax.configs`; the line below
then makes `from configs import default` work too.
"""

import sys

sys.modules.setdefault("configs", sys.modules[__name__])
