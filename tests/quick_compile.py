"""Programs of tests are compiled in a quarter of the time: where `jax_disable_most_optimizations` is on.

XLA's CPU compiler has two ways to write kernels, with the same program of operations before them. That by MLIR's
fusion emitters, its default, takes four times as long as the one before it.
"""

import functools

import jax
from jax._src import compiler

OPTION = {"xla_cpu_use_fusion_emitters": False}


def install() -> None:
    """Makes jax compile so, where its version is known to have the option."""
    if not (0, 10) <= jax.__version_info__ < (0, 11) or hasattr(compiler.get_compile_options, "__wrapped__"):
        return
    own = compiler.get_compile_options

    @functools.wraps(own)
    def get_compile_options(*args, env_options_overrides=None, **kwargs):
        if jax.config.read("jax_disable_most_optimizations"):
            env_options_overrides = OPTION | (env_options_overrides or {})
        return own(*args, env_options_overrides=env_options_overrides, **kwargs)

    compiler.get_compile_options = get_compile_options
