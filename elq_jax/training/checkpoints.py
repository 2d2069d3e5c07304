"""Saves and restores everything that a run needs to be resumed, as Orbax checkpoints."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from elq_jax.core.errors import ElqError
from elq_jax.storage.files import full_disk
from elq_jax.training.optimizer import TrainState

# Orbax reports a full disk with a traceback of its own threads. Earlier checkpoints stay.
_ADVICE = "free some space and give the same command again, which resumes from the last checkpoint"


class Checkpoints:
    """Writes the checkpoints of one stage in the background; each appears only when it is whole.

    A checkpoint holds the step (which is also the data position), parameters, optimiser state, and
    a small JSON record (seed of the dropout and data order, best score so far).

    Args:
      folder: path of the folder, made if it does not exist; may be on gs://.
      keep: number of checkpoints on disk; older ones are removed.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        folder = os.fspath(folder).removeprefix("file://")
        if "://" not in folder:
            folder = pathlib.Path(folder).absolute()
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def save(self, state: TrainState, record: dict[str, Any]) -> None:
        """Saves an unreplicated state; returns when its arrays are copied, before they are on disk.

        Args:
          state: training state; nothing is done if its step has a checkpoint already.
          record: JSON values that are saved beside the arrays.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arrays = jax.device_get({"params": state.params, "opt_state": state.opt_state})
        with full_disk(self._folder, _ADVICE):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
                ),
            )

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest checkpoint; None if there is none.

        Args:
          state: fresh state of the same configuration, with the shapes and types to expect.

        Returns:
          the state, and the record that was saved beside it.

        Raises:
          ElqError: the checkpoint is of another model or optimiser.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        arrays = {"params": state.params, "opt_state": state.opt_state}
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        try:
            checkpoint = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(shapes), record=ocp.args.JsonRestore()
                ),
            )
        except ValueError as error:
            raise ElqError(
                f"{self._folder}: checkpoint {step} does not fit this configuration; use the "
                f"configuration that it was written with, or another workdir ({error})"
            ) from error
        arrays = checkpoint["state"]
        restored = state.replace(
            step=state.step + step, params=arrays["params"], opt_state=arrays["opt_state"]
        )
        return restored, checkpoint["record"]

    def close(self) -> None:
        """Waits until everything is on disk; nothing is saved after that."""
        with full_disk(self._folder, _ADVICE):
            self._manager.wait_until_finished()
            self._manager.close()
