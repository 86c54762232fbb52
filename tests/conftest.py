"""Every test runs on two virtual CPU devices, with exact float32 products and without anything left in flight."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

# Before anything imports JAX, and inherited by the subprocesses of tests.
os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
CACHE = tempfile.mkdtemp(prefix="jaxgan-tests-")
os.environ["JAXGAN_CACHE"] = CACHE

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")  # a plugin may have imported JAX already
jax.config.update("jax_default_matmul_precision", "highest")
# Unblocked calls with collectives can hang on two cores.
jax.config.update("jax_cpu_enable_async_dispatch", False)

# Tracing makes many small objects, and JAX has work of its own at each collection: a sixth of the time of a trace.
gc.set_threshold(20_000)

# The same examples in every run, and no limit on the time of one that compiles.
hypothesis.settings.register_profile("jaxgan", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jaxgan")


def pytest_configure(config):
    """Programs of tests run once or twice, so XLA's and LLVM's optimisers would take far longer than they save.

    Not so in the long forms, `-m slow` and JAXGAN_KILLS.
    """
    if config.option.markexpr != "not slow" or "JAXGAN_KILLS" in os.environ:
        return
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ < (0, 11):  # an older way to emit code, in a third of the time; others may not know it
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


def pytest_unconfigure(config):
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of original data files that a machine keeps for tests: $JAXGAN_TEST_DATA."""
    folder = os.environ.get("JAXGAN_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("JAXGAN_TEST_DATA names no folder")
    return Path(folder)
