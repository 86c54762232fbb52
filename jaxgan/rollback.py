"""How a run goes back to a checkpoint after a loss that is not finite, and remembers that it did."""

import jax
from etils import epath

from jaxgan import files, parallel, report
from jaxgan.game import State

SLOWER = 0.5  # what a rollback multiplies the learning rates by
ROLLBACKS = "rollbacks"  # the file that counts them


def count(directory: epath.Path) -> int:
    """How often the run has gone back, as `go_back` left it."""
    path = directory / ROLLBACKS
    text = path.read_text().strip() if path.exists() else "0"
    return int(text) if text.isdecimal() else 0


def go_back(directory: epath.Path, step: int, rollbacks: int) -> None:
    """What the directory holds before a rollback plays on from `step`: a run that is killed now goes the same way."""
    files.write(directory / ROLLBACKS, f"{rollbacks}\n")
    report.truncate(directory, step or -1)


def other_noise(state: State, rollbacks: int, devices: list[jax.Device]) -> State:
    return state.replace(key=parallel.replicate(jax.random.fold_in(state.key, rollbacks), devices))
